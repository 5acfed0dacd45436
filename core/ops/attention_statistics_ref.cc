#include <algorithm>
#include <cmath>

#include "core/ops/attention_statistics.h"

namespace cadre::ops {
namespace {

struct Key {
  int64_t position;
  std::vector<double> k;
};

Key KeyAt(const KvView& kv, int64_t slot, int64_t head) {
  const KvLayout& layout = kv.layout;
  const int64_t block = kv.Block(0, slot / layout.block_size), in = slot % layout.block_size;
  Key key{slot, std::vector<double>(static_cast<size_t>(layout.key_dim))};
  if (kv.positions != nullptr) {
    key.position = kv.positions[(block * layout.kv_heads + head) * layout.block_size + in];
  }
  for (int64_t d = 0; d < layout.key_dim; ++d) {
    key.k[d] = KvKey(layout, kv.Head(block, head), in, d);
  }
  return key;
}

}  // namespace

void AttentionStatisticsReference(Context&, const AttentionStatisticsKernelArgs& args) {
  const AttentionForwardArgs& f = args.forward;
  const int64_t queries = f.q.dim(0), heads = f.q.dim(1), dim = f.q.dim(2);
  const int64_t group = heads / f.kv.layout.kv_heads, length = f.kv.context_lengths[0];
  std::fill_n(args.to.entropy.data<double>(), heads, 0.0);
  for (int64_t j = 0; j < args.keys; ++j) {
    for (int64_t h = 0; h < heads; ++h) {
      const Key key = KeyAt(f.kv, j, h / group);
      double sum = 0, square = 0, entropy = 0;
      for (int64_t i = 0; i < queries; ++i) {
        const int64_t at = f.query_positions.empty() ? length - queries + i : f.query_positions[i];
        const bool seen = key.position >= 0 && key.position <= at &&
                          (f.window == 0 || key.position > at - f.window);
        if (!seen) continue;
        const double* q = f.q.data<double>() + (i * heads + h) * dim;
        double score = 0;
        for (int64_t d = 0; d < dim; ++d) score += q[d] * key.k[d];
        const double log_p = f.scale * score - f.lse.data<double>()[i * heads + h];
        const double p = std::exp(log_p);
        sum += p;
        square += p * p;
        if (p > 0) entropy -= p * log_p;
      }
      args.to.sum.data<double>()[h * args.keys + j] = sum;
      args.to.square.data<double>()[h * args.keys + j] = square;
      args.to.entropy.data<double>()[h] += entropy;
    }
  }
}

}  // namespace cadre::ops
