#include "bench/peak.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <unordered_map>
#include <vector>

#include <omp.h>
#include <dnnl.hpp>

namespace cadre::bench {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

namespace {

double PeakInto(int threads, dnnl::memory::data_type in, dnnl::memory::data_type result,
                int repeats) {
  using Memory = dnnl::memory;
  constexpr int64_t kSize = 2048;
  omp_set_num_threads(threads);
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const Memory::dims dims = {kSize, kSize};
  Memory::desc a(dims, in, Memory::format_tag::ab), b(dims, in, Memory::format_tag::any);
  Memory::desc c(dims, result, Memory::format_tag::ab);
  dnnl::matmul::primitive_desc pd(dnnl::matmul::desc(a, b, c), engine);
  dnnl::matmul matmul(pd);
  Memory left(a, engine), right(pd.weights_desc(), engine), out(c, engine);
  for (Memory* m : {&left, &right, &out}) {
    std::memset(m->get_data_handle(), 0, m->get_desc().get_size());
  }
  double best = 1e30;
  for (int i = 0; i <= repeats; ++i) {
    double start = Now();
    matmul.execute(stream, {{DNNL_ARG_SRC, left}, {DNNL_ARG_WEIGHTS, right}, {DNNL_ARG_DST, out}});
    stream.wait();
    best = std::min(best, Now() - start);
  }
  return 2.0 * kSize * kSize * kSize / best;
}

}  // namespace

double GemmPeak(int threads, bool bf16, int repeats) {
  const auto f32 = dnnl::memory::data_type::f32, in = bf16 ? dnnl::memory::data_type::bf16 : f32;
  return std::max(PeakInto(threads, in, f32, repeats), PeakInto(threads, in, in, repeats));
}

double ReadBandwidth(int threads, long bytes, int repeats) {
  std::vector<uint64_t> data(static_cast<size_t>(bytes) / 8, 1);
  double best = 1e30;
  uint64_t sink = 0;
  for (int i = 0; i < repeats; ++i) {
    double start = Now();
    uint64_t sum = 0;
    const int64_t n = static_cast<int64_t>(data.size());
    // One word of each cache line: the memory is measured, not the adder.
#pragma omp parallel for reduction(+ : sum) num_threads(threads)
    for (int64_t j = 0; j < n; j += 8) sum += data[j];
    best = std::min(best, Now() - start);
    sink += sum;
  }
  return sink == 0 ? 0 : static_cast<double>(bytes) / best;
}

}  // namespace cadre::bench
