#include "cluster/node_rounds.h"

#include <algorithm>
#include <utility>

#include "cluster/gathering.h"
#include "parallel/rank_list.h"

namespace cadre {
namespace {

constexpr int kMaxRanks = Gathering::kMaxMembers;

void MoveTo(NodeRounds::Due* all, NodeRounds::Due more) {
  all->insert(all->end(), std::make_move_iterator(more.begin()),
              std::make_move_iterator(more.end()));
}

}  // namespace

bool NodeRounds::Start::Has(int number) const {
  return std::binary_search(nodes.begin(), nodes.end(), number);
}

absl::StatusOr<NodeRounds::Node*> NodeRounds::Register(const Member& member) {
  if (member.size != options_.max_nodes) {
    return InvalidArgument("node {}: it says that there are {} nodes, the job has {}",
                           member.number, member.size, options_.max_nodes);
  }
  if (member.number < 0 || member.number >= member.size) {
    return InvalidArgument("node {}: nodes are 0 to {}", member.number, member.size - 1);
  }
  const auto [node, fresh] = nodes_.try_emplace(member.number);
  if (fresh) node->second.claim = member.claim;
  if (node->second.claim == member.claim) return &node->second;
  return absl::AlreadyExistsError(
      fmt::format("node {0}: two launchers say that they are node {0}", member.number));
}

absl::Status NodeRounds::Attend(const Member& member) {
  CADRE_ASSIGN_OR_RETURN(Node* const node, Register(member));
  node->attends = true;
  return absl::OkStatus();
}

NodeRounds::Due NodeRounds::Leave(const Member& member, Clock::time_point now) {
  const auto node = nodes_.find(member.number);
  if (node == nodes_.end() || node->second.claim != member.claim) return {};
  Due due;
  if (node->second.answer) {
    due.push_back([answer = std::move(node->second.answer)] { answer(absl::CancelledError("")); });
  }
  nodes_.erase(node);
  MoveTo(&due, Try(now));
  return due;
}

NodeRounds::Due NodeRounds::Cancel(const Member& member, uint64_t ticket, Clock::time_point now) {
  const auto node = nodes_.find(member.number);
  if (node == nodes_.end() || !node->second.answer || node->second.ticket != ticket) return {};
  if (!node->second.attends) return Leave(member, now);
  Due due = {
      [answer = std::exchange(node->second.answer, {})] { answer(absl::CancelledError("")); }};
  MoveTo(&due, Try(now));
  return due;
}

absl::Status NodeRounds::CheckJoin(const Call& call, const Node& node) const {
  const int number = call.member.number;
  if (over_) return Unavailable("node {}: the job is over", number);
  if (call.processes < 1 || call.processes > kMaxRanks) {
    return InvalidArgument("node {}: {} ranks there; 1 to {} are allowed", number, call.processes,
                           kMaxRanks);
  }
  if (node.answer) {
    return absl::AlreadyExistsError(fmt::format("node {}: it has come already", number));
  }
  const int64_t next = start_ == nullptr ? 0 : start_->generation + 1;
  if (call.generation != (node.joined ? next : -1) || (node.joined && running_)) {
    return absl::FailedPreconditionError(
        fmt::format("node {}: it comes for start {} of the job, the next one is {}", number,
                    call.generation, next));
  }
  return absl::OkStatus();
}

NodeRounds::Due NodeRounds::Join(Call call, Clock::time_point now) {
  const absl::StatusOr<Node*> found = Register(call.member);
  absl::Status status = found.status();
  if (status.ok()) status = CheckJoin(call, **found);
  if (!status.ok()) return {[answer = std::move(call.answer), status] { answer(status); }};
  Node& node = **found;
  node.processes = call.processes;
  if (running_) {
    node.joined = true;
    const bool full = static_cast<int>(nodes_.size()) == options_.max_nodes;
    grow_at_ = full ? now : now + options_.last_call;
    return {[answer = std::move(call.answer), start = start_] { answer(start); }};
  }
  node.ticket = call.ticket;
  node.answer = std::move(call.answer);
  if (!deadline_) {
    timeout_ = call.timeout;
    deadline_ = now + call.timeout;
  }
  return Try(now);
}

std::vector<int> NodeRounds::Waiting() const {
  std::vector<int> numbers;
  for (const auto& [number, node] : nodes_) {
    if (node.answer) numbers.push_back(number);
  }
  return numbers;
}

std::vector<int> NodeRounds::Staying() const {
  std::vector<int> numbers;
  for (const auto& [number, node] : nodes_) {
    if (node.joined && !node.leaving) numbers.push_back(number);
  }
  return numbers;
}

absl::StatusOr<NodeRounds::Start> NodeRounds::Choose(const std::vector<int>& numbers) const {
  if (static_cast<int>(numbers.size()) < options_.min_nodes) return Unavailable("too few nodes");
  Start start;
  int64_t world = 0;
  std::vector<int64_t> worlds;  // of the first so many nodes
  for (const int number : numbers) worlds.push_back(world += nodes_.at(number).processes);
  absl::Status largest;
  for (size_t count = numbers.size(); static_cast<int>(count) >= options_.min_nodes; --count) {
    const int64_t ranks = worlds[count - 1];
    absl::Status status;
    if (ranks > kMaxRanks) {
      status = InvalidArgument("{} ranks; 1 to {} are allowed", ranks, kMaxRanks);
    } else if (options_.check_world) {
      status = options_.check_world(static_cast<int>(ranks));
    }
    if (!status.ok()) {
      if (largest.ok()) largest = status;
      continue;
    }
    if (!largest.ok()) start.smaller = Message(largest);
    start.world_size = static_cast<int>(ranks);
    for (size_t i = 0; i < count; ++i) {
      start.nodes.push_back(numbers[i]);
      start.first_rank.push_back(i == 0 ? 0 : static_cast<int>(worlds[i - 1]));
    }
    return start;
  }
  return largest;
}

NodeRounds::Due NodeRounds::Try(Clock::time_point now) {
  const std::vector<int> waiting = Waiting();
  if (running_ || waiting.empty()) {
    deadline_.reset();
    last_call_at_.reset();
    last_call_over_ = false;
    return {};
  }
  const int count = static_cast<int>(waiting.size());
  const bool late = now >= *deadline_;
  const bool all = std::ranges::all_of(
      nodes_, [](const auto& node) { return node.second.answer || node.second.leaving; });
  if (count < options_.min_nodes || !all) {
    last_call_at_.reset();
    last_call_over_ = false;
    if (!late) return {};
    if (count < options_.min_nodes) return Fail(TimedOut(""));
  } else if (!last_call_at_ && !last_call_over_) {
    last_call_at_ = now + options_.last_call;
  }
  if (last_call_at_ && now >= *last_call_at_) {
    last_call_at_.reset();
    last_call_over_ = true;
  }
  const bool full = count == options_.max_nodes, now_or_never = full || late || last_call_over_;
  if (!now_or_never && start_ == nullptr) return {};
  absl::StatusOr<Start> start = Choose(waiting);
  if (!start.ok() && full) return Fail(start.status());
  if (!start.ok()) return late ? Fail(TimedOut(Message(start.status()))) : Due();
  if (!now_or_never && start->world_size < wanted_ranks_) return {};
  return Begin(*std::move(start));
}

NodeRounds::Due NodeRounds::Begin(Start start) {
  start.generation = start_ == nullptr ? 0 : start_->generation + 1;
  start_ = std::make_shared<const Start>(std::move(start));
  running_ = true;
  wanted_ranks_ = start_->world_size;
  deadline_.reset();
  last_call_at_.reset();
  last_call_over_ = false;
  Due due;
  for (auto& [number, node] : nodes_) {
    if (!node.answer) continue;
    node.joined = true;
    due.push_back([answer = std::exchange(node.answer, {}), begun = start_] { answer(begun); });
  }
  return due;
}

NodeRounds::Due NodeRounds::Fail(const absl::Status& status) {
  Due due;
  for (auto& [number, node] : nodes_) {
    if (!node.answer) continue;
    due.push_back([answer = std::exchange(node.answer, {}), status] { answer(status); });
  }
  deadline_.reset();
  last_call_at_.reset();
  last_call_over_ = false;
  return due;
}

absl::Status NodeRounds::TimedOut(const std::string& reason) const {
  std::vector<int> missing;
  for (int number = 0; number < options_.max_nodes; ++number) {
    const auto node = nodes_.find(number);
    if (node == nodes_.end() || !node->second.answer) missing.push_back(number);
  }
  std::string text = fmt::format("launchers: after {:g} s {} of {} did not come",
                                 static_cast<double>(timeout_.count()) / 1000,
                                 RankList("node", missing), options_.max_nodes);
  if (!reason.empty()) {
    text += "; without them: " + reason;
  } else if (options_.min_nodes < options_.max_nodes) {
    text += fmt::format("; at least {} are needed", options_.min_nodes);
  }
  return absl::DeadlineExceededError(text);
}

absl::Status NodeRounds::Admit(const Member& member, int64_t generation) const {
  const auto node = nodes_.find(member.number);
  if (node == nodes_.end() || node->second.claim != member.claim) {
    return absl::FailedPreconditionError(
        fmt::format("node {}: this launcher is not in the job", member.number));
  }
  if (start_ != nullptr && generation == start_->generation) return absl::OkStatus();
  return absl::FailedPreconditionError(fmt::format(
      "node {}: it is of start {} of the job; {}", member.number, generation,
      start_ == nullptr ? "none runs" : fmt::format("start {} runs", start_->generation)));
}

void NodeRounds::End(bool again) {
  running_ = false;
  over_ = !again;
  grow_at_.reset();
  joining_.clear();
}

void NodeRounds::Grow() {
  grow_at_.reset();
  const absl::StatusOr<Start> larger = Choose(Staying());
  if (!larger.ok() || larger->world_size <= start_->world_size) return;
  for (const int number : larger->nodes) {
    if (!start_->Has(number)) joining_.push_back(number);
  }
}

bool NodeRounds::Release(int number) {
  const auto node = nodes_.find(number);
  if (!running_ || node == nodes_.end()) return false;
  node->second.leaving = true;
  const absl::StatusOr<Start> rest = Choose(Staying());
  if (!rest.ok()) {
    node->second.leaving = false;
    return false;
  }
  wanted_ranks_ = rest->world_size;
  return true;
}

NodeRounds::Due NodeRounds::Expire(Clock::time_point now) {
  if (running_ && grow_at_ && now >= *grow_at_) Grow();
  return Try(now);
}

NodeRounds::Due NodeRounds::Close(const absl::Status& status) {
  over_ = true;
  return Fail(status);
}

std::optional<NodeRounds::Clock::time_point> NodeRounds::NextDeadline() const {
  std::optional<Clock::time_point> next;
  for (const auto& time : {deadline_, last_call_at_, grow_at_}) {
    if (time && (!next || *time < *next)) next = time;
  }
  return next;
}

}  // namespace cadre
