#include <algorithm>

#include "core/ops/rope.h"

namespace cadre::ops {

void RopeReference(Context&, const RopeKernelArgs& args) {
  const int64_t tokens = args.x.dim(0), heads = args.x.dim(1), dh = args.x.dim(2);
  const int64_t half = args.table->rotary_dim() / 2;
  const bool interleaved = args.table->pairing() == RopePairing::kInterleaved;
  const double* x = args.x.data<double>();
  double* y = args.y.data<double>();
  std::copy(x, x + args.x.numel(), y);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < half; ++i) {
      auto [c, s] = args.table->Exact(args.positions.data<int32_t>()[t], i);
      if (args.backward) s = -s;
      const int64_t first = args.offset + (interleaved ? 2 * i : i);
      const int64_t second = interleaved ? first + 1 : first + half;
      for (int64_t h = 0; h < heads; ++h) {
        const int64_t head = (t * heads + h) * dh;
        const double a = x[head + first], b = x[head + second];
        y[head + first] = a * c - b * s;
        y[head + second] = b * c + a * s;
      }
    }
  }
}

}  // namespace cadre::ops
