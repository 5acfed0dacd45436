#include "training/evaluate.h"

#include <algorithm>

#include "parallel/pipeline_executor.h"
#include "parallel/schedule.h"
#include "training/train_step.h"

namespace cadre {
namespace {

// Long enough to hide that the first layer's weights are waited for, short enough to remember.
constexpr int64_t kGroupsPerPasses = 64;

class Evaluation {
 public:
  Evaluation(Context& ctx, const Model& model, const EvaluationPart& part, const Layout& layout)
      : ctx_(ctx), model_(model), part_(part), pipeline_(PipelineOf(layout)) {}

  absl::StatusOr<double> Run(SampleStream& stream) {
    CADRE_ASSIGN_OR_RETURN(tokens_, stream.LossTokens(0, part_.count));
    if (tokens_ == 0) return 0.0;
    for (int64_t first = 0, group = 0; first < part_.count; ++group) {
      if (group % kGroupsPerPasses == 0) part_.begin_passes();
      group_.clear();
      // As many microbatches as fill the pipeline.
      while (first < part_.count && group_.size() < static_cast<size_t>(pipeline_.ranks)) {
        CADRE_ASSIGN_OR_RETURN(PackedBatch rows, ReadRows(stream, first));
        group_.push_back(std::move(rows));
        first += part_.ranks * part_.micro;
      }
      pipeline_.microbatches = static_cast<int>(group_.size());
      PipelineExecutor executor(PipelineOptions(ctx_, model_, group_.front()));
      CADRE_RETURN_IF_ERROR(executor.Run(ctx_, MakeForwardSchedule(pipeline_),
                                         [&](const StageInput& in) { return Forward(in); }));
    }
    return loss_;
  }

 private:
  absl::StatusOr<PackedBatch> ReadRows(SampleStream& stream, int64_t first) const {
    PackedBatch packed;
    for (int64_t i = 0; i < part_.micro; ++i) {
      const int64_t row = first + part_.rank * part_.micro + i;
      if (row >= part_.count && part_.ranks * pipeline_.ranks == 1) break;
      // Ranks that share a model meet in every microbatch, with equally many tokens.
      CADRE_RETURN_IF_ERROR(stream.Append(row % part_.count, &packed));
      if (row >= part_.count) {
        std::fill(packed.targets.begin() + *(packed.row_offsets.rbegin() + 1), packed.targets.end(),
                  -1);
      }
    }
    return packed;
  }

  Var Forward(const StageInput& in) {
    const PackedBatch& packed = group_[static_cast<size_t>(in.microbatch)];
    const Batch batch = ToBatch(ctx_, packed);
    const Decoder& decoder = model_.decoder();
    Var hidden = decoder.ForwardStage(ctx_, in.stage, in.activation, batch).hidden;
    if (in.stage + 1 < pipeline_.stages()) return hidden;
    const Tensor targets = Targets(ctx_, batch, packed);
    loss_ +=
        decoder
            .Loss(ctx_, hidden, {.targets = targets, .scale = 1.0 / static_cast<double>(tokens_)})
            .cross_entropy;
    return {};
  }

  Context& ctx_;
  const Model& model_;
  const EvaluationPart& part_;
  ScheduleSpec pipeline_;
  std::vector<PackedBatch> group_;
  int64_t tokens_ = 0;
  double loss_ = 0;
};

}  // namespace

absl::StatusOr<double> EvaluateLoss(Context& ctx, const Model& model, SampleStream& stream,
                                    const EvaluationPart& part, const Layout& layout) {
  return Evaluation(ctx, model, part, layout).Run(stream);
}

}  // namespace cadre
