// One forward: what a chunked prefill and token-by-token decode over paged blocks compute has the
// bits of the forward over the whole batch, for every kind of layer.
#include "model/decoder.h"

#include <gtest/gtest.h>

#include <cstring>
#include <map>

#include "core/host_allocator.h"
#include "model/model.h"
#include "model/score.h"

namespace cadre {
namespace {

constexpr int kBlock = 16;

std::vector<std::vector<int32_t>> Sequences() {
  std::vector<std::vector<int32_t>> sequences(2);
  for (int i = 0; i < 75; ++i) sequences[0].push_back(3 + i * 7 % 70);
  for (int i = 0; i < 21; ++i) sequences[1].push_back(3 + i * 11 % 70);
  return sequences;
}

struct Fixture {
  HostAllocator allocator;
  Context ctx;
  std::unique_ptr<Model> model;

  // residual: the wiring, which the fixture's weights do not care about. layers: the first ones
  // alone, with weights of zero; 0: all.
  Fixture(const std::string& name, DType dtype, const std::string& residual = "standard",
          int layers = 0) {
    ctx = {.allocator = &allocator, .threads = 2};
    const std::string folder = "tests/golden/fixtures/" + name;
    auto config = LoadHfConfig(folder);
    CADRE_CHECK(config.ok(), "{}", Message(config.status()));
    config->model.set_residual(residual);
    if (layers > 0) {
      config->model.set_num_hidden_layers(layers);
      auto* types = config->model.mutable_layer_types();
      while (types->size() > layers) types->RemoveLast();
    }
    auto made =
        CreateModel(ctx, *std::move(config), {.dtype = dtype, .decoder = {.max_position = 128}});
    CADRE_CHECK(made.ok(), "{}", Message(made.status()));
    model = *std::move(made);
    ctx.parameters = &model->parameters();
    if (layers > 0) return;
    auto loaded = LoadWeights(ctx, folder, model->config());
    CADRE_CHECK(loaded.ok(), "{}", Message(loaded.status()));
  }
};

// A pool a layer; sequence s owns blocks [8 s, 8 s + 8), handed out in a shuffled order.
class PagedRunner {
 public:
  explicit PagedRunner(Fixture& fixture) : fixture_(fixture) {
    DType dtype = ops::KvPoolDType(fixture.model->parameters().buckets()[0].dtype);
    for (const LayerSpec& layer : fixture.model->spec().layers) {
      const AttentionSpec& a = layer.attention;
      layouts_.push_back({.dtype = dtype,
                          .kv_heads = static_cast<int>(a.kv_heads),
                          .key_dim = static_cast<int>(a.head_dim),
                          .value_dim = static_cast<int>(a.value_dim),
                          .block_size = kBlock});
      pools_.emplace_back(16 * ops::KvBlockBytes(layouts_.back()));
    }
    for (int s = 0; s < 2; ++s) {
      for (int b = 0; b < 8; ++b) tables_.push_back(8 * s + (b * 3 + 1) % 8);
    }
  }

  // Tokens [from, to) of each listed sequence; the hidden states, packed.
  Tensor Step(const std::vector<std::vector<int32_t>>& all,
              const std::map<int, std::pair<int, int>>& ranges) {
    return fixture_.model->decoder().Forward(fixture_.ctx, MakeBatch(all, ranges)).hidden.value;
  }

  // A batch that borrows from this runner until the next one is made.
  Batch MakeBatch(const std::vector<std::vector<int32_t>>& all,
                  const std::map<int, std::pair<int, int>>& ranges) {
    std::vector<int32_t> ids, positions;
    batch_slots_.clear();
    batch_lengths_.clear();
    batch_tables_.clear();
    Batch batch{.offsets = {0}};
    for (const auto& [s, range] : ranges) {
      for (int t = range.first; t < range.second; ++t) {
        ids.push_back(all[static_cast<size_t>(s)][static_cast<size_t>(t)]);
        positions.push_back(t);
        batch_slots_.push_back(tables_[static_cast<size_t>(8 * s + t / kBlock)] * kBlock +
                               t % kBlock);
      }
      batch.offsets.push_back(static_cast<int32_t>(ids.size()));
      batch_lengths_.push_back(range.second);
      batch_tables_.insert(batch_tables_.end(), tables_.begin() + 8 * s,
                           tables_.begin() + 8 * s + 8);
    }
    Shape shape{static_cast<int64_t>(ids.size())};
    batch.ids = Tensor::Of<int32_t>(fixture_.allocator, shape, std::span<const int32_t>(ids));
    batch.positions =
        Tensor::Of<int32_t>(fixture_.allocator, shape, std::span<const int32_t>(positions));
    for (size_t l = 0; l < layouts_.size(); ++l) {
      batch.kv.push_back({.view = {.data = pools_[l].data(),
                                   .layout = layouts_[l],
                                   .block_tables = batch_tables_,
                                   .table_stride = 8,
                                   .context_lengths = batch_lengths_},
                          .slots = batch_slots_});
    }
    return batch;
  }

 private:
  Fixture& fixture_;
  std::vector<int32_t> batch_lengths_, batch_tables_;
  std::vector<int64_t> batch_slots_;
  std::vector<ops::KvLayout> layouts_;
  std::vector<std::vector<std::byte>> pools_;
  std::vector<int32_t> tables_;
};

void ExpectSameBits(const Tensor& got, const Tensor& want, const std::string& what) {
  ASSERT_EQ(got.numel(), want.numel()) << what;
  EXPECT_EQ(std::memcmp(got.raw(), want.raw(), want.bytes()), 0) << what;
}

class OneForward : public testing::TestWithParam<const char*> {};

void CheckPaged(const std::string& name, DType dtype, const std::string& residual = "standard") {
  Fixture fixture(name, dtype, residual);
  auto all = Sequences();
  Batch whole = PackSequences(fixture.allocator, all);
  Tensor want = fixture.model->decoder().Forward(fixture.ctx, whole).hidden.value;
  Tensor first = want.Narrow(0, 75), second = want.Narrow(75, 21);

  PagedRunner runner(fixture);
  // Prefill in chunks of 64 and 9, the second sequence joining late, then decode.
  ExpectSameBits(runner.Step(all, {{0, {0, 64}}}), first.Narrow(0, 64), "prefill");
  Tensor mixed = runner.Step(all, {{0, {64, 73}}, {1, {0, 20}}});
  ExpectSameBits(mixed.Narrow(0, 9), first.Narrow(64, 9), "chunk");
  ExpectSameBits(mixed.Narrow(9, 20), second.Narrow(0, 20), "joined");
  Tensor decoded = runner.Step(all, {{0, {73, 74}}, {1, {20, 21}}});
  ExpectSameBits(decoded.Narrow(0, 1), first.Narrow(73, 1), "decode");
  ExpectSameBits(decoded.Narrow(1, 1), second.Narrow(20, 1), "decode, second");
  ExpectSameBits(runner.Step(all, {{0, {74, 75}}}), first.Narrow(74, 1), "decode alone");

  // The cache matters: another first token shows in the last.
  all[0][0] = 50;
  PagedRunner changed(fixture);
  Tensor other = changed.Step(all, {{0, {0, 75}}});
  EXPECT_NE(std::memcmp(other.Narrow(74, 1).raw(), first.Narrow(74, 1).raw(),
                        first.Narrow(74, 1).bytes()),
            0);
}

// Layer by layer over runs of other lengths, as a prompt is read whose cache is cut after each
// layer.
void CheckLayerMajor(const std::string& name, DType dtype, const std::string& residual) {
  Fixture fixture(name, dtype, residual);
  const Decoder& decoder = fixture.model->decoder();
  const auto all = Sequences();
  const Batch whole = PackSequences(fixture.allocator, std::span(all).first(1));
  const Tensor want = decoder.Forward(fixture.ctx, whole).hidden.value;
  PagedRunner runner(fixture);
  const std::vector<std::vector<int>> cuts = {{0, 75}, {0, 32, 75}, {0, 1, 50, 75}};
  Tensor stream;
  const int layers = static_cast<int>(decoder.spec().layers.size());
  for (int l = 0; l < layers; ++l) {
    const std::vector<int>& cut = cuts[static_cast<size_t>(l) % cuts.size()];
    const int64_t columns = l + 1 == layers ? want.dim(1) : decoder.handed_on_by(l + 1);
    Tensor next = fixture.ctx.Empty({75, columns}, want.dtype());
    for (size_t c = 0; c + 1 < cut.size(); ++c) {
      const int64_t begin = cut[c], count = cut[c + 1] - cut[c];
      const Batch batch = runner.MakeBatch(all, {{0, {cut[c], cut[c + 1]}}});
      const Var x = l == 0 ? Var{} : Var{stream.Narrow(begin, count)};
      const Tensor out = decoder.ForwardLayers(fixture.ctx, {l, l + 1}, x, batch).hidden.value;
      std::memcpy(next.Narrow(begin, count).raw(), out.raw(), out.bytes());
    }
    stream = next;
  }
  ExpectSameBits(stream, want, "layer by layer");
}

// The first layers with an exit behind them are the model that has no others.
void CheckExit(const std::string& name, const std::string& residual) {
  Fixture whole(name, DType::kBF16, residual), half(name, DType::kBF16, residual, 1);
  const Decoder& decoder = whole.model->decoder();
  ASSERT_GT(decoder.spec().layers.size(), half.model->spec().layers.size());
  const auto all = Sequences();
  const Batch batch = PackSequences(whole.allocator, all);
  ParameterStore& to = half.model->parameters();
  for (ParamId id = 0; id < to.size(); ++id) {
    ParameterStore& from = whole.model->parameters();
    const Tensor weight = from.Acquire(from.Find(to.spec(id).name), Lease::kForward);
    std::memcpy(to.Acquire(id, Lease::kForward).raw(), weight.raw(), weight.bytes());
  }
  const Var first = decoder.ForwardLayers(whole.ctx, {0, 1}, {}, batch).hidden;
  const Tensor want = half.model->decoder().Forward(half.ctx, batch).hidden.value;
  ExpectSameBits(decoder.Exit(whole.ctx, first).value, want, "exit");
}

TEST_P(OneForward, LayerMajor) { CheckLayerMajor(GetParam(), DType::kBF16, "standard"); }
TEST_P(OneForward, LayerMajorLadder) { CheckLayerMajor(GetParam(), DType::kF32, "ladder"); }
TEST_P(OneForward, Exit) { CheckExit(GetParam(), "standard"); }
TEST_P(OneForward, ExitLadder) { CheckExit(GetParam(), "ladder"); }
TEST_P(OneForward, F32) { CheckPaged(GetParam(), DType::kF32); }
TEST_P(OneForward, BF16) { CheckPaged(GetParam(), DType::kBF16); }
TEST_P(OneForward, Ladder) { CheckPaged(GetParam(), DType::kBF16, "ladder"); }

// mistral's own window is shorter than the sequences' changed token is far: left out.
INSTANTIATE_TEST_SUITE_P(Families, OneForward,
                         testing::Values("llama", "qwen3_moe", "olmoe", "deepseek_v3", "gpt_oss"),
                         [](const auto& info) { return std::string(info.param); });

TEST(Score, FirstsHaveNoLogprobAndRowsStandAlone) {
  Fixture fixture("qwen3_moe", DType::kF32);
  auto all = Sequences();
  const Decoder& decoder = fixture.model->decoder();
  Scores both = ScoreBatch(fixture.ctx, decoder, PackSequences(fixture.allocator, all));
  Scores alone =
      ScoreBatch(fixture.ctx, decoder, PackSequences(fixture.allocator, std::span(all).subspan(1)));
  ExpectSameBits(both.logprobs.Narrow(75, 21), alone.logprobs, "in company");
  EXPECT_EQ(both.logprobs.data<float>()[0], 0.0f);
  EXPECT_EQ(both.logprobs.data<float>()[75], 0.0f);
  EXPECT_LT(both.logprobs.data<float>()[1], 0.0f);
}

TEST(Score, TokensAreChecked) {
  Fixture fixture("llama", DType::kF32);
  const Decoder& decoder = fixture.model->decoder();
  auto check = [&](std::vector<int32_t> ids) { return Message(CheckTokens(decoder, ids)); };
  EXPECT_EQ(check({1, 95}), "");
  EXPECT_EQ(check({}), "ids: none given (at least 1 is needed)");
  EXPECT_EQ(check({1, 96}), "ids[1]: 96 (allowed: 0 to vocab_size - 1 = 95)");
  EXPECT_EQ(check({-1}), "ids[0]: -1 (allowed: 0 to vocab_size - 1 = 95)");
  EXPECT_EQ(check(std::vector<int32_t>(129, 5)),
            "ids: 129 tokens (allowed: at most the model's 128 positions)");
}

}  // namespace
}  // namespace cadre
