#include "serving/queue_policy.h"

#include <tuple>

#include "core/status.h"
#include "serving/fair_share.h"

namespace cadre {
namespace {

class Fcfs : public QueuePolicy {
 public:
  bool Before(const Sequence& a, const Sequence& b) const override { return a.arrival < b.arrival; }
  bool Outlasts(const Sequence& a, const Sequence& b) const override {
    return a.arrival < b.arrival;
  }
};

auto PriorityKey(const Sequence& s) { return std::tuple(s.request.priority, s.arrival); }

class Priority : public QueuePolicy {
 public:
  bool Before(const Sequence& a, const Sequence& b) const override {
    return PriorityKey(a) < PriorityKey(b);
  }
  bool Outlasts(const Sequence& a, const Sequence& b) const override {
    return PriorityKey(a) < PriorityKey(b);
  }
};

class Fair : public QueuePolicy {
 public:
  explicit Fair(const QueueOptions& options) : options_(options) {}

  void Queued(const Sequence& s) override { share_.Queued(s.request.tenant); }
  void Left(const Sequence& s) override { share_.Left(s.request.tenant); }
  void Charge(const Sequence& s, int64_t prompt, int64_t generated) override {
    share_.Charge(s.request.tenant, options_.prompt_weight * static_cast<double>(prompt) +
                                        options_.generated_weight * static_cast<double>(generated));
  }
  // What gave way comes first: its tenant has paid for it already.
  bool Before(const Sequence& a, const Sequence& b) const override { return Key(a) < Key(b); }
  // By arrival alone: the counters move, and one key's priorities say nothing of another's.
  bool Outlasts(const Sequence& a, const Sequence& b) const override {
    return a.arrival < b.arrival;
  }

 private:
  using Order = std::tuple<bool, double, std::string_view, int, uint64_t>;
  Order Key(const Sequence& s) const {
    if (s.preemptions > 0) return {false, 0, "", 0, s.arrival};
    return {true, share_.served(s.request.tenant), s.request.tenant, s.request.priority, s.arrival};
  }

  const QueueOptions options_;
  FairShare share_;
};

}  // namespace

std::unique_ptr<QueuePolicy> MakeQueuePolicy(const QueueOptions& options) {
  switch (options.policy) {
    case SchedulingPolicy::kFcfs:
      return std::make_unique<Fcfs>();
    case SchedulingPolicy::kPriority:
      return std::make_unique<Priority>();
    case SchedulingPolicy::kFair:
      return std::make_unique<Fair>(options);
  }
  CADRE_CHECK(false, "no such scheduling policy");
}

}  // namespace cadre
