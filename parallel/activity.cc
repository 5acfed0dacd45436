#include "parallel/activity.h"

#include "parallel/flight_recorder.h"
#include "parallel/groups.h"

namespace cadre {

void RecordActivity(const Context& ctx, std::string_view activity, int layer) {
  if (ctx.groups == nullptr || ctx.groups->recorder == nullptr) return;
  ctx.groups->recorder->SetActivity(activity, layer);
}

void RecordForward(const Context& ctx, int layer) { RecordActivity(ctx, "forward", layer); }

void RecordBackwardFrom(Context& ctx, const Var& x, int layer) {
  if (ctx.groups == nullptr || ctx.groups->recorder == nullptr) return;
  if (ctx.tape == nullptr || x.slot == kNoSlot) return;
  ctx.tape->Record(
      {.name = "activity",
       .outputs = {x.slot},
       .input_grad = [layer](GradContext& g) { RecordActivity(g.ctx(), "backward", layer); },
       .weight_grad =
           [layer](GradContext& g) { RecordActivity(g.ctx(), "backward of weights", layer); },
       .weight_reads_output_grad = false});
}

}  // namespace cadre
