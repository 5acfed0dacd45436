#include <cmath>
#include <limits>
#include <vector>

#include "core/ops/attention.h"

namespace cadre::ops {
namespace {

// The keys and values of one (sequence, KV head) as plain rows.
struct PlainHead {
  int64_t length;
  std::vector<double> k, v;
  std::vector<int64_t> positions;

  PlainHead(const KvView& kv, int64_t sequence, int64_t head)
      : length(kv.context_lengths[sequence]),
        k(length * kv.layout.key_dim),
        v(length * kv.layout.value_dim),
        positions(length) {
    const KvLayout& layout = kv.layout;
    for (int64_t j = 0; j < length; ++j) {
      const int64_t block = kv.Block(sequence, j / layout.block_size);
      const int64_t slot = j % layout.block_size;
      const std::byte* from = kv.Head(block, head);
      for (int64_t d = 0; d < layout.key_dim; ++d) {
        k[j * layout.key_dim + d] = KvKey(layout, from, slot, d);
      }
      for (int64_t d = 0; d < layout.value_dim; ++d) {
        v[j * layout.value_dim + d] = KvValue(layout, from, slot, d);
      }
      positions[j] =
          kv.positions == nullptr
              ? j
              : kv.positions[(block * layout.kv_heads + head) * layout.block_size + slot];
    }
  }
};

bool Visible(int64_t query, int64_t key, int window) {
  return key >= 0 && key <= query && (window == 0 || key > query - window);
}

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// One row; returns its log-sum-exp.
double AttendRow(const AttentionForwardArgs& args, const PlainHead& head, int64_t t, int64_t h,
                 int64_t position) {
  const int64_t dk = args.q.dim(2), dv = args.out.dim(2), heads = args.q.dim(1);
  const double* q = args.q.data<double>() + (t * heads + h) * dk;
  double* out = args.out.data<double>() + (t * heads + h) * dv;
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  std::vector<double> scores(head.length, kNone);
  double maximum = args.sinks.defined() ? args.sinks.data<double>()[h] : kNone;
  for (int64_t j = 0; j < head.length; ++j) {
    if (!Visible(position, head.positions[j], args.window)) continue;
    scores[j] = args.scale * Dot(q, &head.k[j * dk], dk);
    maximum = std::max(maximum, scores[j]);
  }
  std::fill(out, out + dv, 0.0);
  if (maximum == kNone) return -kNone;
  double sum = args.sinks.defined() ? std::exp(args.sinks.data<double>()[h] - maximum) : 0.0;
  for (int64_t j = 0; j < head.length; ++j) {
    const double p = std::exp(scores[j] - maximum);
    sum += p;
    for (int64_t d = 0; d < dv; ++d) out[d] += p * head.v[j * dv + d];
  }
  for (int64_t d = 0; d < dv; ++d) out[d] /= sum;
  return maximum + std::log(sum);
}

// Adds the gradients of row (t, h) of sequence s.
void AttendRowGrad(const AttentionGradArgs& args, size_t s, int64_t t, int64_t h) {
  const int64_t first = args.offsets[s], keys = args.offsets[s + 1] - first;
  const int64_t position =
      args.query_positions.empty() ? t - args.query_offsets[s] : args.query_positions[t];
  const int64_t heads = args.q.dim(1), kv_heads = args.k.dim(1), dk = args.q.dim(2);
  const int64_t dv = args.v.dim(2), g = h / (heads / kv_heads), row = t * heads + h;
  const double* q = args.q.data<double>() + row * dk;
  const double* dout = args.dout.data<double>() + row * dv;
  double* dq = args.dq.data<double>() + row * dk;
  const double delta = Dot(dout, args.out.data<double>() + row * dv, dv);
  for (int64_t j = 0; j < keys; ++j) {
    const int64_t at = args.key_positions.empty() ? j : args.key_positions[first + j];
    if (!Visible(position, at, args.window)) continue;
    const int64_t key = (first + j) * kv_heads + g;
    const double* k = args.k.data<double>() + key * dk;
    const double p = std::exp(args.scale * Dot(q, k, dk) - args.lse.data<double>()[row]);
    const double dp = Dot(dout, args.v.data<double>() + key * dv, dv);
    const double ds = p * (dp - delta) * args.scale;
    for (int64_t d = 0; d < dv; ++d) args.dv.data<double>()[key * dv + d] += p * dout[d];
    for (int64_t d = 0; d < dk; ++d) {
      dq[d] += ds * k[d];
      args.dk.data<double>()[key * dk + d] += ds * q[d];
    }
  }
}

void Clear(const Tensor& x) { std::fill_n(x.data<double>(), x.numel(), 0.0); }

}  // namespace

void AttentionForwardReference(Context&, const AttentionForwardArgs& args) {
  const int64_t heads = args.q.dim(1), group = heads / args.kv.layout.kv_heads;
  for (int64_t s = 0; s < args.kv.sequences(); ++s) {
    const int64_t begin = args.offsets[s], end = args.offsets[s + 1];
    for (int64_t g = 0; g < args.kv.layout.kv_heads; ++g) {
      PlainHead head(args.kv, s, g);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t position =
            args.query_positions.empty() ? head.length - end + t : args.query_positions[t];
        for (int64_t h = g * group; h < (g + 1) * group; ++h) {
          const double lse = AttendRow(args, head, t, h, position);
          if (args.lse.defined()) args.lse.data<double>()[t * heads + h] = lse;
        }
      }
    }
  }
}

void AttentionGradReference(Context&, const AttentionGradArgs& args) {
  Clear(args.dq);
  Clear(args.dk);
  Clear(args.dv);
  for (size_t s = 0; s + 1 < args.offsets.size(); ++s) {
    for (int64_t t = args.query_offsets[s]; t < args.query_offsets[s + 1]; ++t) {
      for (int64_t h = 0; h < args.q.dim(1); ++h) AttendRowGrad(args, s, t, h);
    }
  }
}

void AttentionSinkGradReference(Context&, const AttentionSinkGradArgs& args) {
  const int64_t tokens = args.out.dim(0), heads = args.out.dim(1), dv = args.out.dim(2);
  for (int64_t h = 0; h < heads; ++h) {
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t row = t * heads + h;
      const double delta =
          Dot(args.dout.data<double>() + row * dv, args.out.data<double>() + row * dv, dv);
      args.dsinks.data<double>()[h] -=
          std::exp(args.sinks.data<double>()[h] - args.lse.data<double>()[row]) * delta;
    }
  }
}

}  // namespace cadre::ops
