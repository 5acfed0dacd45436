// Products of a served step: few rows by weights that come from memory, as stored and quantized, of
// the memory's bandwidth and of the GEMM peak.
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300 build/release/bench_served_gemm [--threads N]
//       [--rows 1,8,32] [--shape N,K]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>

#include "bench/peak.h"
#include "core/host_allocator.h"
#include "core/ops/gemm_quant.h"
#include "core/ops/quantize.h"

namespace cadre::bench {
namespace {

struct Flags {
  std::vector<int64_t> rows = {1, 2, 4, 8, 9, 16, 17, 24, 32, 64};
  std::vector<int64_t> shape = {3584, 1280};
  int threads = 2, repeats = 7;
};

// As many matrices as no cache holds, multiplied by one after the other.
class Weights {
 public:
  Weights(Context& ctx, const Flags& flags, int bits)
      : ctx_(ctx), n_(flags.shape[0]), k_(flags.shape[1]) {
    const int64_t count = std::max<int64_t>(4, (int64_t{256} << 20) * 8 / (n_ * k_ * bits));
    const Tensor w = ctx.Empty({n_, k_}, DType::kBF16);
    for (int64_t i = 0; i < n_ * k_; ++i) {
      w.data<BF16>()[i] = static_cast<BF16>(static_cast<float>(i % 13 - 6));
    }
    for (int64_t i = 0; i < count; ++i) {
      if (bits == 16) {
        ops::PackPanels(ctx, w, true, panels_.emplace_back());
      } else {
        const WeightFormat format = bits == 8 ? WeightFormat::kInt8 : WeightFormat::kInt4;
        codes_.push_back({ops::PackQuantized(ctx, {ops::QuantizeRows(ctx, w, format)})});
      }
    }
  }

  double bytes() const {
    return static_cast<double>(panels_.empty() ? codes_[0][0].bytes() : panels_[0].data.bytes());
  }

  double Seconds(int64_t m, int repeats) const {
    const Tensor x = ctx_.Zeros({m, k_}, DType::kBF16), y = ctx_.Zeros({m, n_}, DType::kBF16);
    double best = 1e30;
    for (int i = 0; i < repeats; ++i) {
      const double start = Now();
      for (const ops::Panels& panels : panels_) {
        ops::PanelGemm(ctx_, {.a = {x.raw(), m}, .b = panels, .c = y});
      }
      for (const auto& codes : codes_)
        ops::QuantGemm(ctx_, {.a = {x.raw(), m}, .b = codes, .c = y});
      best = std::min(best, Now() - start);
    }
    return best / static_cast<double>(std::max(panels_.size(), codes_.size()));
  }

 private:
  Context& ctx_;
  const int64_t n_, k_;
  std::vector<ops::Panels> panels_;
  std::vector<std::vector<QuantizedMatrix>> codes_;
};

void Report(Context& ctx, const Flags& flags, double peak) {
  for (const int bits : {16, 8, 4}) {
    const Weights weights(ctx, flags, bits);
    for (const int64_t m : flags.rows) {
      const double bandwidth = ReadBandwidth(flags.threads, 1L << 28, 2);
      const double seconds = weights.Seconds(m, flags.repeats);
      const double flops = 2.0 * static_cast<double>(m * flags.shape[0] * flags.shape[1]) / seconds;
      std::printf("| %4d | %4ld | %6.1f | %.2f | %6.0f | %.2f |\n", bits, static_cast<long>(m),
                  weights.bytes() / seconds / 1e9, weights.bytes() / seconds / bandwidth,
                  flops / 1e9, flops / peak);
      std::fflush(stdout);
    }
  }
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  using namespace cadre;
  bench::Flags flags;
  CLI::App app("few rows by weights from memory");
  app.add_option("--rows", flags.rows)->delimiter(',')->check(CLI::Range(1, 4096));
  app.add_option("--shape", flags.shape, "N,K of a matrix")->delimiter(',')->expected(2);
  app.add_option("--threads", flags.threads)->check(CLI::Range(1, 256));
  app.add_option("--repeats", flags.repeats)->check(CLI::Range(1, 1000));
  CLI11_PARSE(app, argc, argv);
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = flags.threads};
  const double peak = bench::GemmPeak(flags.threads, true);
  std::printf("%ld x %ld, %d threads, bf16 peak %.0f GFLOP/s\n", static_cast<long>(flags.shape[0]),
              static_cast<long>(flags.shape[1]), flags.threads, peak / 1e9);
  std::printf("| bits | rows | GB/s   | of bandwidth | GFLOP/s | of peak |\n");
  bench::Report(ctx, flags, peak);
  return 0;
}
