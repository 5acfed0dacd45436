// What attention's workers hand over: partials of tiles, and the sums of what outputs begin with.
// Private to core/ops/attention_*.
#pragma once

#include <span>

#include "core/context.h"
#include "core/ops/attention_work.h"
#include "core/ops/lean_plan.h"

namespace cadre::ops {

struct AttentionKept {
  int64_t rows = 0, values = 0;  // of the largest block; of a row, padded

  AttentionKept(std::span<const AttentionBlock> blocks, int64_t value_pad) : values(value_pad) {
    for (const AttentionBlock& block : blocks) rows = std::max(rows, block.rows);
    AttentionPartial::At(nullptr, rows, values, &bytes_);
  }

  int64_t bytes() const { return static_cast<int64_t>(bytes_); }  // of one partial

  // Room for a window's; what was carried from the one before stays.
  void Reserve(Context& ctx, const LeanPlan& plan) {
    const int64_t places = plan.kept + static_cast<int64_t>(plan.shared.size());
    if (places > 0) room_ = ctx.Empty({places, static_cast<int64_t>(bytes_)}, DType::kU8);
    sums_ = plan.kept;
    if (!carried_.defined() && !plan.shared.empty() && !plan.shared.back().complete) {
      carried_ = ctx.Empty({static_cast<int64_t>(bytes_)}, DType::kU8);
    }
  }

  AttentionPartial Tile(int64_t place) const { return At(room_.raw() + place * bytes_); }
  AttentionPartial Sums(int64_t shared) const { return Tile(sums_ + shared); }
  // From one window to the next.
  AttentionPartial Carried() const { return At(carried_.raw()); }

 private:
  AttentionPartial At(std::byte* base) const {
    return AttentionPartial::At(base, rows, values, nullptr);
  }

  size_t bytes_ = 0;
  Tensor room_, carried_;
  int64_t sums_ = 0;
};

}  // namespace cadre::ops
