// Our products against oneDNN's peak and against oneDNN at the same shape, in one run:
//   build/release/bench_gemm
#include <cstdio>

#include <dnnl.hpp>

#include "bench/peak.h"
#include "core/host_allocator.h"
#include "core/ops/gemm.h"

namespace cadre::bench {
namespace {

constexpr int kRepeats = 7;

template <typename Run>
double Best(const Run& run) {
  double best = 1e30;
  for (int i = 0; i < kRepeats; ++i) {
    double start = Now();
    run();
    best = std::min(best, Now() - start);
  }
  return best;
}

double DnnlSeconds(int64_t m, int64_t n, int64_t k) {
  using Memory = dnnl::memory;
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const auto bf16 = Memory::data_type::bf16;
  Memory::desc a({m, k}, bf16, Memory::format_tag::ab), b({k, n}, bf16, Memory::format_tag::any);
  Memory::desc c({m, n}, bf16, Memory::format_tag::ab);
  dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(a, b, c), engine);
  dnnl::matmul matmul(pd);
  Memory left(a, engine), right(pd.weights_desc(), engine), out(c, engine);
  return Best([&] {
    matmul.execute(stream, {{DNNL_ARG_SRC, left}, {DNNL_ARG_WEIGHTS, right}, {DNNL_ARG_DST, out}});
    stream.wait();
  });
}

void Report(Context& ctx, double peak, int64_t m, int64_t n, int64_t k) {
  ParameterStore store;
  ParamId id = store.Add({.name = "w", .shape = {n, k}});
  store.Allocate(*ctx.allocator, DType::kBF16, {});
  PackedWeights packed;
  ctx.parameters = &store;
  ctx.packed = &packed;
  Tensor w = store.Acquire(id, Lease::kForward);
  Tensor x = ctx.Zeros({m, k}, DType::kBF16), y = ctx.Zeros({m, n}, DType::kBF16);
  Tensor dw = ctx.Zeros({n, k}, DType::kF32);
  const double flops = 2.0 * static_cast<double>(m * n * k);
  double forward = Best([&] { ops::WeightGemm(ctx, {.param = id, .weight = w, .a = x, .c = y}); });
  double input = Best([&] {
    ops::WeightGemm(ctx, {.param = id,
                          .weight = w,
                          .direction = PackedWeights::Direction::kInputGrad,
                          .a = y,
                          .c = x});
  });
  double weight = Best(
      [&] { ops::Gemm(ctx, {.a = y, .b = x, .c = dw, .transpose_a = true, .accumulate = true}); });
  double library = DnnlSeconds(m, n, k);
  std::printf("%6ld %6ld %6ld   %5.2f   %5.2f   %5.2f   %5.2f\n", m, n, k, flops / forward / peak,
              flops / input / peak, flops / weight / peak, flops / library / peak);
}

}  // namespace
}  // namespace cadre::bench

int main() {
  using namespace cadre;
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 2};
  const double peak = bench::GemmPeak(2, true);
  std::printf("bf16 peak (oneDNN 2048^3, 2 threads): %.0f GFLOP/s; below, shares of it\n",
              peak / 1e9);
  std::printf("%6s %6s %6s   %5s   %5s   %5s   %5s\n", "M", "N", "K", "fwd", "dx", "dw", "oneDNN");
  for (int64_t m : {64, 512, 4096}) {
    bench::Report(ctx, peak, m, 2304, 768);
    bench::Report(ctx, peak, m, 768, 768);
    bench::Report(ctx, peak, m, 4096, 768);
    bench::Report(ctx, peak, m, 768, 2048);
    bench::Report(ctx, peak, m, 2048, 2048);
  }
  bench::Report(ctx, peak, 512, 32768, 768);
}
