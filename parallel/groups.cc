#include "parallel/groups.h"

namespace cadre {

bool Landed(Context& ctx, Work& work, const OpLabel& label) {
  CADRE_CHECK(ctx.groups != nullptr, "{} without groups", ToString(label));
  const absl::Status status = work.Wait();
  if (!status.ok()) ctx.groups->Record(status);
  return status.ok();
}

}  // namespace cadre
