// Gathering: all members of a group hand in a value under a key and get everybody's. The
// rendezvous' logic without its transport: time is handed in and answers are functions.
//
// Callers are hostile until the service has seen their token, and clumsy after: numbers claimed
// twice, sizes that differ and values over the bounds are refused in one line.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/status.h"

namespace cadre {

class Gathering {
 public:
  static constexpr int kMaxMembers = 65536;
  static constexpr size_t kMaxKeyBytes = 128;
  static constexpr size_t kMaxValueBytes = 1 << 20;
  static constexpr size_t kMaxGatherBytes = size_t{64} << 20;  // of one key's values together
  static constexpr size_t kMaxOpenKeys = 64;

  using Clock = std::chrono::steady_clock;
  using Values = std::shared_ptr<const std::vector<std::string>>;
  using Answer = std::function<void(const absl::StatusOr<Values>&)>;
  // Answers that are due: to be called in order, once no lock is held.
  using Due = std::vector<std::function<void()>>;

  struct Member {
    int64_t generation = 0;
    int number = 0;
    int size = 0;
    uint64_t claim = 0;
  };

  // `noun` is what a member is called in messages: "rank".
  Gathering(std::string noun, int64_t generation, int size)
      : noun_(std::move(noun)), generation_(generation), size_(size) {}

  // Whether the member belongs here; takes its number for its claim.
  absl::Status Admit(const Member& member);

  struct Call {
    Member member;
    std::string key;
    std::string value;
    std::chrono::milliseconds timeout{};
    uint64_t ticket = 0;  // tells this call from others of the same member
    Answer answer;
  };
  // Its answer comes here or in one of the others. The first to come under a key sets the time.
  Due Add(Call call, Clock::time_point now);
  // The call with this ticket no longer waits: its connection broke. That ends the key for all.
  Due Leave(const std::string& key, int number, uint64_t ticket);
  Due Expire(Clock::time_point now);
  // Ends everything that waits.
  Due Close(const absl::Status& status);
  std::optional<Clock::time_point> NextDeadline() const;

  int64_t generation() const { return generation_; }
  int size() const { return size_; }

 private:
  struct Waiting {
    std::string value;
    uint64_t ticket = 0;
    Answer answer;
  };
  struct Key {
    std::map<int, Waiting> members;
    size_t bytes = 0;
    std::chrono::milliseconds timeout{};
    Clock::time_point deadline;
  };
  absl::Status Check(const Call& call) const;
  Due End(std::map<std::string, Key>::iterator key, const absl::StatusOr<Values>& outcome);
  absl::Status TimedOut(const std::string& name, const Key& key) const;

  std::string noun_;
  int64_t generation_;
  int size_;
  std::unordered_map<int, uint64_t> claims_;
  std::map<std::string, Key> open_;
  std::map<std::string, absl::Status> failed_;  // for those who come too late
};

}  // namespace cadre
