#include "model/residual.h"

#include <optional>
#include <utility>

#include "core/ops/elementwise.h"

namespace cadre {
namespace {

// Records in `place` while it lives; without a tape or a place it does nothing.
struct Earlier {
  std::optional<Tape::Filling> filling;
  Earlier(Context& ctx, int place) {
    if (ctx.tape != nullptr && place >= 0) filling.emplace(*ctx.tape, place);
  }
};

}  // namespace

void ResidualStream::LandOldest(Context& ctx) {
  PendingOutput output = std::move(pending_.front());
  pending_.pop_front();
  landed_ = ops::Add(ctx, landed_, output(ctx));
}

Var ResidualStream::Read(Context& ctx, Wiring wiring, const ops::RmsNormArgs& norm) {
  if (wiring == Wiring::kStandard) return ops::RmsNorm(ctx, Land(ctx), norm);
  Var normed;
  {
    Earlier earlier(ctx, place_);
    if (pending_.size() == 2) LandOldest(ctx);
    normed = ops::RmsNorm(ctx, landed_, norm);
  }
  if (ctx.tape != nullptr) place_ = ctx.tape->ReservePlace();
  return normed;
}

void ResidualStream::Add(Context& ctx, Wiring wiring, PendingOutput output) {
  pending_.push_back(std::move(output));
  if (wiring == Wiring::kStandard) Land(ctx);
}

Var ResidualStream::Land(Context& ctx) {
  if (pending_.size() == 2) {
    Earlier earlier(ctx, place_);
    LandOldest(ctx);
  }
  if (!pending_.empty()) LandOldest(ctx);
  place_ = -1;
  return landed_;
}

std::vector<Var> ResidualStream::Leave(Context& ctx) {
  if (pending_.size() == 2) {
    Earlier earlier(ctx, place_);
    LandOldest(ctx);
  }
  std::vector<Var> left = {landed_};
  if (!pending_.empty()) left.push_back(pending_.front()(ctx));
  return left;
}

ResidualStream ResidualStream::Enter(const std::vector<Var>& left) {
  ResidualStream stream(left[0]);
  if (left.size() > 1) stream.pending_.push_back([output = left[1]](Context&) { return output; });
  return stream;
}

}  // namespace cadre
