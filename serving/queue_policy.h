// QueuePolicy: who is admitted next, and who gives way where KV blocks run out.
//
// The scheduler tells the policy what happens to the sequences that wait and asks it for orders;
// the policy owns nothing but its books. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>

#include "serving/sequence.h"

namespace cadre {

enum class SchedulingPolicy {
  kFcfs,      // first come, first served
  kPriority,  // the lowest priority number first, then as they came
  // The API key that has been served least (serving/fair_share.h); among one key's requests the
  // lowest priority number first, then as they came: no key can outbid another.
  kFair,
};

struct QueueOptions {
  SchedulingPolicy policy = SchedulingPolicy::kFcfs;
  // With kFair: what a prompt token and a generated one cost. A prompt is charged as it is
  // admitted, without what the prefix cache has of it, a generated token as it is planned.
  double prompt_weight = 1, generated_weight = 2;
};

class QueuePolicy {
 public:
  virtual ~QueuePolicy() = default;

  virtual void Queued(const Sequence&) {}  // a new one begins to wait
  // A new one stops waiting: admitted, or gone. A preempted one that waits again is neither.
  virtual void Left(const Sequence&) {}
  virtual void Charge(const Sequence&, int64_t prompt_tokens, int64_t generated_tokens) {}

  // Whether `a` is admitted before `b`: a strict weak order that may change whenever the above is
  // called.
  virtual bool Before(const Sequence& a, const Sequence& b) const = 0;
  // Whether `b` gives way before `a`: a strict order that never changes, or two could push each
  // other out for ever.
  virtual bool Outlasts(const Sequence& a, const Sequence& b) const = 0;
};

std::unique_ptr<QueuePolicy> MakeQueuePolicy(const QueueOptions& options);

}  // namespace cadre
