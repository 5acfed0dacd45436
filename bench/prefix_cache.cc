// Time to the first token with and without a cached prefix, by the engine itself, alternately in
// one run, on the 162M llama:
//   OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=300 build/release/bench_prefix_cache [rounds]
// Each round asks three times: a prompt nobody sent before, the same once more, and its first 7/8
// with another end, as a conversation or a shared system prompt has it.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <vector>

#include "bench/peak.h"
#include "bench/shapes.h"
#include "core/host_allocator.h"
#include "model/initialize.h"
#include "serving/engine.h"

namespace cadre::bench {
namespace {

struct First {
  double seconds = 0;
  int cached = 0;
};

class FirstToken : public EventSink {
 public:
  void OnStep(std::vector<TokenEvent> events) override {
    first_.set_value({bench::Now() - start_, events.front().cached_tokens});
  }
  First Wait() { return first_.get_future().get(); }

 private:
  double start_ = bench::Now();
  std::promise<First> first_;
};

First Ask(Engine& engine, const std::vector<int32_t>& prompt) {
  static uint64_t id = 0;
  auto sink = std::make_shared<FirstToken>();
  const absl::Status submitted =
      engine.Submit({{.id = ++id,
                      .prompt = std::make_shared<std::vector<int32_t>>(prompt),
                      .sampling = {.temperature = 0, .max_tokens = 1}}},
                    sink);
  CADRE_CHECK(submitted.ok(), "{}", Message(submitted));
  return sink->Wait();
}

First Median(std::vector<First> values) {
  std::ranges::nth_element(values, values.begin() + std::ssize(values) / 2, {}, &First::seconds);
  return values[values.size() / 2];
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) {
  using namespace cadre;
  const int rounds = argc > 1 ? std::max(1, std::atoi(argv[1])) : 5;
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = 2};
  std::unique_ptr<Model> model = std::move(*CreateModel(ctx, bench::BenchConfig(false), {}));
  ctx.parameters = &model->parameters();
  InitializeParameters(ctx, 1);
  auto engine = Engine::Create(*model, {.threads = 2, .kv_cache_memory_bytes = int64_t{512} << 20});
  CADRE_CHECK(engine.ok(), "{}", Message(engine.status()));
  int32_t word = 0;
  auto words = [&](std::vector<int32_t> text, size_t size) {
    while (text.size() < size) text.push_back(word = (word * 31 + 7) % 31991);
    return text;
  };
  bench::Ask(**engine, words({}, 64));  // packs the weights
  for (size_t size : {256, 1024}) {
    std::vector<bench::First> fresh, again, related;
    for (int i = 0; i < rounds; ++i) {
      const std::vector<int32_t> prompt = words({++word}, size);
      fresh.push_back(bench::Ask(**engine, prompt));
      again.push_back(bench::Ask(**engine, prompt));
      related.push_back(
          bench::Ask(**engine, words({prompt.begin(), prompt.end() - size / 8}, size)));
    }
    const auto [cold, none] = bench::Median(fresh);
    for (const auto& [name, asked] : {std::pair("again", again), std::pair("related", related)}) {
      const auto [seconds, cached] = bench::Median(asked);
      std::printf("%4zu tokens: %7.1f ms (%d cached), %-7s %7.1f ms (%d cached), %.1f times\n",
                  size, cold * 1e3, none, name, seconds * 1e3, cached, cold / seconds);
    }
  }
  (*engine)->Stop();
}
