// How a waiting sequence takes over keys and values that are stored already: of a cached prefix, or
// of another of its request's n choices. Engine thread only.
#pragma once

#include <memory>
#include <span>

#include "serving/sequence.h"

namespace cadre {

// Tokens of the sequence that need not be computed where they are stored: all but the last one,
// whose logits are sampled, and none whose row has yet to tell a prompt token's logprob or is to
// go into a mean.
int64_t ReusableTokens(const Sequence& sequence);

// kAfterSibling: one of `running` is about to store the same prompt. kAfterDisk: some of it is
// being read from disk, or is to be.
enum class Reuse { kDone, kAfterSibling, kAfterDisk };

// Lets the sequence, which holds no blocks, hold what is stored of it; else it had better wait, and
// nothing is changed. may_read: reads from disk may begin. One prompt's at a time, or the blocks of
// one would push those of another out before they are taken.
Reuse ReusePrefix(KvCache& cache, Sequence& sequence,
                  std::span<const std::unique_ptr<Sequence>> running, bool may_read);

}  // namespace cadre
