// What a grammar allows a sequence to say next, worked out beside the engine's steps.
//
// A TokenConstraint belongs to one sequence. After each sampled token the engine hands it to the
// MaskWorker, whose threads step the grammar and fill the mask for the next token while the
// engine computes that token's logits; the engine waits only where the mask is not there yet by
// then. Masks that a running sequence needs go before the first ones of sequences that may wait for
// long yet. A sequence that is preempted keeps its constraint, since its tokens stay.
//
//   worker.Start(constraint);            // any thread
//   ... forward ...
//   const TokenConstraint::Next& next = worker.Wait(*constraint);   // engine thread
//   ... sample under next.allowed ...
//   worker.Advance(constraint, token);
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "core/status.h"
#include "serving/grammar/compiled_grammar.h"

namespace cadre {

class TokenConstraint {
 public:
  struct Next {
    // Bit i: token i may come; ends of sequence among them where the text may end. [V / 64]
    std::vector<uint64_t> allowed;
    bool ended = false;   // nothing may come, and the text is whole
    absl::Status status;  // not OK: the grammar cannot go on; `allowed` means nothing
    bool may_go_on() const { return status.ok() && !ended; }
  };

  // `ends`: ids that end a sequence. V tokens are sampled from.
  TokenConstraint(std::shared_ptr<const CompiledGrammar> grammar, std::span<const int32_t> ends,
                  int64_t vocab);

 private:
  friend class MaskWorker;
  // token < 0: none has come yet.
  void Compute(int32_t token);

  TokenMatcher matcher_;
  const std::vector<int32_t> ends_;
  const int64_t vocab_;
  std::vector<uint64_t> filled_;  // over the tokenizer's vocabulary, which may differ from V
  Next next_;
  bool ready_ = true;  // guarded by the worker's mutex
};

class MaskWorker {
 public:
  MaskWorker() = default;
  ~MaskWorker();
  MaskWorker(const MaskWorker&) = delete;
  MaskWorker& operator=(const MaskWorker&) = delete;

  // The first mask, which may come after those that are advanced to later.
  void Start(std::shared_ptr<TokenConstraint> constraint) {
    Post(std::move(constraint), -1, &first_masks_);
  }
  // Not before Wait returned for what was posted last.
  void Advance(std::shared_ptr<TokenConstraint> constraint, int32_t token) {
    Post(std::move(constraint), token, &next_masks_);
  }
  // Until the posted work on it is done. The reference holds until the next Advance.
  const TokenConstraint::Next& Wait(const TokenConstraint& constraint);

 private:
  // A grammar may be slow; another one must not stand behind it alone.
  static constexpr int kThreads = 2;
  struct Job {
    std::shared_ptr<TokenConstraint> constraint;
    int32_t token;
  };

  void Post(std::shared_ptr<TokenConstraint> constraint, int32_t token, std::deque<Job>* queue);
  void Run();

  std::mutex mutex_;
  std::condition_variable posted_, done_;
  std::deque<Job> next_masks_, first_masks_;  // all of the former go first
  bool stopping_ = false;
  std::vector<std::thread> threads_;  // from the first constraint on
};

}  // namespace cadre
