// Drafts by a smaller model with the same vocabulary. It has a cache of its own, which follows the
// sequences: what it has not read yet of one it reads first, a bounded number of tokens a step.
#pragma once

#include <memory>
#include <optional>
#include <unordered_map>

#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "serving/draft_forward.h"
#include "serving/draft_proposer.h"
#include "serving/kv_plan.h"
#include "serving/model_home.h"

namespace cadre {

struct DraftModelOptions {
  int threads = 1;
  int64_t max_read_tokens = 2048;  // of a step, all sequences together
  KvPlanOptions kv;                // context: of the model that is drafted for
};

class DraftModelProposer : public DraftProposer {
 public:
  // The draft model's home outlives the proposer and nobody else runs the model. kInvalidArgument:
  // another vocabulary than `vocabulary`; else as PlanKvCache.
  static absl::StatusOr<std::unique_ptr<DraftModelProposer>> Create(
      ModelHome& draft, int64_t vocabulary, const DraftModelOptions& options);

  void Propose(std::span<const DraftRequest> requests) override;
  void Forget(uint64_t id) override;
  // At level 2 the weights stay where they cannot be loaded again.
  void GiveUpMemory(int level) override;
  absl::Status TakeWeights() override;
  void TakeMemory() override;

 private:
  struct Reader {
    KvSequence kv;
    std::vector<int32_t> written;  // tokens whose keys and values lie in the cache, guesses too
  };
  struct Draft {
    DraftRequest request;
    Reader* reader;
    std::span<const int32_t> unread;  // of the sequence's known tokens, what this step reads
    bool whole;                       // to the last of them
  };

  DraftModelProposer(ModelHome& draft, const DraftModelOptions& options, KvPlan kv);
  // The weights are there.
  void UseWeights();
  // Forgets what was guessed wrongly and makes room; nothing where there is none.
  std::optional<Draft> Follow(const DraftRequest& request, int64_t* budget);
  // Reads `tokens` of each draft and gives those that are read to the end their next guess.
  void Step(std::span<Draft> drafts, int64_t round);

  ModelHome& draft_;
  DraftModelOptions options_;
  HostAllocator allocator_;
  PackedWeights packed_;
  Context ctx_;
  KvCache cache_;
  bool cache_dropped_ = false;
  std::unordered_map<uint64_t, Reader> readers_;
};

}  // namespace cadre
