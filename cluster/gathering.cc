#include "cluster/gathering.h"

#include <algorithm>
#include <utility>

#include "parallel/rank_list.h"

namespace cadre {

absl::Status Gathering::Admit(const Member& member) {
  if (member.generation != generation_) {
    return absl::FailedPreconditionError(
        fmt::format("{} {}: it is of start {} of the job; start {} runs", noun_, member.number,
                    member.generation, generation_));
  }
  if (member.size != size_) {
    return InvalidArgument("{} {}: it says that there are {} {}s, the job has {}", noun_,
                           member.number, member.size, noun_, size_);
  }
  if (member.number < 0 || member.number >= size_) {
    return InvalidArgument("{} {}: {}s are 0 to {}", noun_, member.number, noun_, size_ - 1);
  }
  const auto [claim, fresh] = claims_.try_emplace(member.number, member.claim);
  if (claim->second == member.claim) return absl::OkStatus();
  return absl::AlreadyExistsError(
      fmt::format("{0} {1}: two processes say that they are {0} {1}", noun_, member.number));
}

absl::Status Gathering::Check(const Call& call) const {
  const int number = call.member.number;
  if (call.key.empty() || call.key.size() > kMaxKeyBytes) {
    return InvalidArgument("{} {}: a key of {} bytes; 1 to {} are allowed", noun_, number,
                           call.key.size(), kMaxKeyBytes);
  }
  // It stands in messages to others.
  if (!std::all_of(call.key.begin(), call.key.end(), [](char c) { return c >= ' ' && c <= '~'; })) {
    return InvalidArgument("{} {}: a key that is not printable ASCII", noun_, number);
  }
  if (call.value.size() > kMaxValueBytes) {
    return InvalidArgument("{} {}: {}: a value of {} bytes; {} are allowed", noun_, number,
                           call.key, call.value.size(), kMaxValueBytes);
  }
  if (const auto failed = failed_.find(call.key); failed != failed_.end()) return failed->second;
  const auto open = open_.find(call.key);
  if (open == open_.end()) {
    if (open_.size() < kMaxOpenKeys) return absl::OkStatus();
    return ResourceExhausted("{} {}: {}: {} keys are open already", noun_, number, call.key,
                             open_.size());
  }
  if (open->second.members.contains(number)) {
    return absl::AlreadyExistsError(
        fmt::format("{} {}: {}: it has come already", noun_, number, call.key));
  }
  if (open->second.bytes + call.value.size() > kMaxGatherBytes) {
    return ResourceExhausted("{} {}: {}: all values together pass {} bytes", noun_, number,
                             call.key, kMaxGatherBytes);
  }
  return absl::OkStatus();
}

Gathering::Due Gathering::Add(Call call, Clock::time_point now) {
  absl::Status status = Admit(call.member);
  if (status.ok()) status = Check(call);
  if (!status.ok()) return {[answer = std::move(call.answer), status] { answer(status); }};
  const auto [at, fresh] = open_.try_emplace(call.key);
  Key& open = at->second;
  if (fresh) {
    open.timeout = call.timeout;
    open.deadline = now + call.timeout;
  }
  open.bytes += call.value.size();
  open.members.emplace(call.member.number,
                       Waiting{std::move(call.value), call.ticket, std::move(call.answer)});
  if (open.members.size() < static_cast<size_t>(size_)) return {};
  auto values = std::make_shared<std::vector<std::string>>();
  for (auto& [number, waiting] : open.members) values->push_back(std::move(waiting.value));
  return End(at, Values(std::move(values)));
}

Gathering::Due Gathering::End(std::map<std::string, Key>::iterator key,
                              const absl::StatusOr<Values>& outcome) {
  // As many as may be open: beyond that a late comer waits for its own time-out.
  if (!outcome.ok() && failed_.size() < kMaxOpenKeys) {
    failed_.emplace(key->first, outcome.status());
  }
  Due due;
  for (auto& [number, waiting] : key->second.members) {
    due.push_back([answer = std::move(waiting.answer), outcome] { answer(outcome); });
  }
  open_.erase(key);
  return due;
}

Gathering::Due Gathering::Leave(const std::string& key, int number, uint64_t ticket) {
  const auto open = open_.find(key);
  if (open == open_.end()) return {};
  const auto waiting = open->second.members.find(number);
  if (waiting == open->second.members.end() || waiting->second.ticket != ticket) return {};
  return End(open,
             Unavailable("{}: {} {} left while it waited for the others", key, noun_, number));
}

absl::Status Gathering::TimedOut(const std::string& name, const Key& key) const {
  std::vector<int> missing;
  for (int i = 0; i < size_; ++i) {
    if (!key.members.contains(i)) missing.push_back(i);
  }
  return absl::DeadlineExceededError(fmt::format("{}: after {:g} s {} of {} did not come", name,
                                                 static_cast<double>(key.timeout.count()) / 1000,
                                                 RankList(noun_, missing), size_));
}

Gathering::Due Gathering::Expire(Clock::time_point now) {
  Due due;
  for (auto key = open_.begin(); key != open_.end();) {
    const auto next = std::next(key);
    if (key->second.deadline <= now) {
      Due ended = End(key, TimedOut(key->first, key->second));
      due.insert(due.end(), std::make_move_iterator(ended.begin()),
                 std::make_move_iterator(ended.end()));
    }
    key = next;
  }
  return due;
}

Gathering::Due Gathering::Close(const absl::Status& status) {
  Due due;
  while (!open_.empty()) {
    Due ended = End(open_.begin(), status);
    due.insert(due.end(), std::make_move_iterator(ended.begin()),
               std::make_move_iterator(ended.end()));
  }
  return due;
}

std::optional<Gathering::Clock::time_point> Gathering::NextDeadline() const {
  std::optional<Clock::time_point> next;
  for (const auto& [name, key] : open_) {
    if (!next || key.deadline < *next) next = key.deadline;
  }
  return next;
}

}  // namespace cadre
