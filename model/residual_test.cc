#include "model/residual.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "model/decoder.h"
#include "model/initialize.h"
#include "model/model.h"
#include "parallel/mesh.h"
#include "parallel/test_group.h"
#include "parallel/test_ranks.h"

namespace cadre {
namespace {

constexpr int64_t kTokens = 12, kWidth = 16;

config::ModelConfig Config(const std::string& type, std::vector<int> ladder_layers) {
  config::ModelConfig c;
  c.set_model_type(type);
  c.set_vocab_size(40);
  c.set_hidden_size(kWidth);
  c.set_intermediate_size(24);
  c.set_moe_intermediate_size(12);
  c.set_num_hidden_layers(4);
  c.set_num_attention_heads(2);
  c.set_num_experts(4);
  c.set_num_experts_per_tok(2);
  c.set_shared_expert_intermediate_size(8);
  c.set_initializer_range(0.3);
  if (ladder_layers.empty()) return c;
  c.set_residual("ladder");
  for (const int layer : ladder_layers) c.add_ladder_layers(layer);
  return c;
}

struct Rig {
  HostAllocator allocator;
  Context ctx{.allocator = &allocator};
  std::unique_ptr<Model> model;
  Batch batch;

  explicit Rig(const config::ModelConfig& config, const ModelPart& part = {}) {
    auto made = CreateModel(ctx, {.model = config},
                            {.dtype = DType::kF64, .gradients = true, .decoder = {.part = part}});
    CADRE_CHECK(made.ok(), "{}", Message(made.status()));
    model = *std::move(made);
    ctx.parameters = &model->parameters();
    InitializeParameters(ctx, 3);
    std::vector<std::vector<int32_t>> sequences(2);
    for (int i = 0; i < 7; ++i) sequences[0].push_back(i * 11 % 40);
    for (int i = 0; i < 5; ++i) sequences[1].push_back(i * 7 % 40);
    batch = PackSequences(allocator, sequences);
  }

  double Loss(Tape* tape) {
    ctx.tape = tape;
    DecoderOutput out = model->decoder().Forward(ctx, batch, {.router = {.balance = 0.1}});
    std::vector<int32_t> targets(kTokens, 5);
    auto result = model->decoder().Loss(
        ctx, out.hidden,
        {.targets = Tensor::Of<int32_t>(allocator, {kTokens}, targets), .scale = 0.1});
    ctx.tape = nullptr;
    double loss = result.cross_entropy;
    std::vector<Var> losses = out.router_losses;
    for (const Var& router : losses) loss += *router.value.data<double>();
    if (tape == nullptr) return loss;
    losses.push_back(result.loss);
    for (const Var& one : losses) {
      const double unit = 1;
      tape->Seed(one.slot, Tensor::Of<double>(allocator, {1}, std::span(&unit, 1)));
    }
    return loss;
  }
};

// Blocks that any residual wiring may join, with the parameters that a decoder would make.
struct Modules {
  ParameterStore store;
  ParamId embedding, norm;
  std::vector<ParamId> norms;
  std::vector<AttentionBlock> attention;
  std::vector<MlpBlock> mlp;

  explicit Modules(const DecoderSpec& spec) {
    ParamBuilder params(store, spec.init_stddev, {});
    embedding = params.Add(params.Table("model.embed_tokens.weight", spec.vocab, spec.hidden, {}));
    for (int i = 0; i < static_cast<int>(spec.layers.size()); ++i) {
      const LayerSpec& layer = spec.layers[static_cast<size_t>(i)];
      const std::string prefix = fmt::format("model.layers.{}.", i);
      norms.push_back(params.Norm(prefix + "input_layernorm.weight", spec.hidden));
      norms.push_back(params.Norm(prefix + "post_attention_layernorm.weight", spec.hidden));
      attention.emplace_back(spec, layer.attention, prefix + "self_attn.", params);
      mlp.emplace_back(spec.hidden, layer.mlp, prefix + "mlp.", params);
    }
    norm = params.Norm("model.norm.weight", spec.hidden);
  }

  // Module i of attention 0, feed-forward 0, attention 1, ...
  Tensor Output(Context& ctx, int i, const Tensor& x, const AttentionInputs& in) const {
    const Tensor normed = ops::RmsNorm(ctx, {x}, {norms[static_cast<size_t>(i)], 1e-6f}).value;
    const auto layer = static_cast<size_t>(i / 2);
    PendingOutput out = i % 2 == 0 ? attention[layer].Forward(ctx, {normed}, in)
                                   : mlp[layer].Forward(ctx, {normed}, i / 2);
    return out(ctx).value;
  }
};

// What the formula of the header says, module by module; reads[i] is which state module i reads,
// where state j has the outputs of modules 0 to j - 1.
Tensor Formula(Rig& rig, const std::vector<int>& reads) {
  HostAllocator& allocator = rig.allocator;
  const DecoderSpec& spec = rig.model->spec();
  Modules modules(spec);
  modules.store.Allocate(allocator, DType::kF64, {});
  Context ctx{.allocator = &allocator, .parameters = &modules.store};
  InitializeParameters(ctx, 3);
  const auto table = ops::RopeTable::Build(spec.rope, 64);
  Tensor table_rows = modules.store.Acquire(modules.embedding, Lease::kForward);
  Tensor x = ctx.Empty({kTokens, kWidth}, DType::kF64);
  for (int64_t t = 0; t < kTokens; ++t) {
    std::memcpy(x.data<double>() + t * kWidth,
                table_rows.data<double>() + rig.batch.ids.data<int32_t>()[t] * kWidth,
                kWidth * sizeof(double));
  }
  std::vector<Tensor> states = {x};
  for (int i = 0; i < static_cast<int>(reads.size()); ++i) {
    const AttentionInputs in{.batch = rig.batch, .rope = *table, .layer = i / 2};
    const Tensor h =
        modules.Output(ctx, i, states[static_cast<size_t>(reads[static_cast<size_t>(i)])], in);
    Tensor next = ctx.Empty(x.shape(), DType::kF64);
    for (int64_t e = 0; e < x.numel(); ++e) {
      next.data<double>()[e] = states.back().data<double>()[e] + h.data<double>()[e];
    }
    states.push_back(next);
  }
  return ops::RmsNorm(ctx, {states.back()}, {modules.norm, 1e-6f}).value;
}

void ExpectFormula(const std::vector<int>& ladder_layers, const std::vector<int>& reads) {
  config::ModelConfig config = Config("llama", ladder_layers);
  config.set_rms_norm_eps(1e-6);
  Rig rig(config);
  const Tensor got = rig.model->decoder().Forward(rig.ctx, rig.batch).hidden.value;
  const Tensor want = Formula(rig, reads);
  EXPECT_EQ(std::memcmp(got.raw(), want.raw(), want.bytes()), 0);
}

TEST(Residual, StandardModulesReadWhatIsBeforeThem) { ExpectFormula({}, {0, 1, 2, 3, 4, 5, 6, 7}); }
TEST(Residual, LadderModulesReadOneStateEarlier) {
  ExpectFormula({0, 1, 2, 3}, {0, 0, 1, 2, 3, 4, 5, 6});
}
// Each run of ladder layers begins anew, and all has landed where a standard layer reads.
TEST(Residual, WiringsMeet) {
  ExpectFormula({2, 3}, {0, 1, 2, 3, 4, 4, 5, 6});
  ExpectFormula({0, 2}, {0, 0, 2, 3, 4, 4, 6, 7});
}

// The slope of the loss along a direction in the space of all weights.
TEST(Residual, GradientsAreFiniteDifferences) {
  for (const char* type : {"llama", "qwen2_moe"}) {
    for (const std::vector<int>& layers : {std::vector<int>{0, 1, 2, 3}, std::vector<int>{1, 2}}) {
      for (const bool delayed : {false, true}) {
        Rig rig(Config(type, layers));
        ParameterStore& store = rig.model->parameters();
        store.ZeroGradients();
        Tape tape(&ops::Accumulate);
        rig.Loss(&tape);
        if (delayed) {
          tape.BackwardInputs(rig.ctx);
          tape.BackwardWeights(rig.ctx);
        } else {
          tape.Backward(rig.ctx);
        }
        double slope = 0;
        const auto shift = [&](double step) {
          double at = 0.3;
          for (const ParamBucket& bucket : store.buckets()) {
            if (!bucket.gradients.defined()) continue;
            for (int64_t i = 0; i < bucket.numel; ++i) {
              const double direction = std::sin(at += 0.7);
              bucket.weights.data<double>()[i] += step * direction;
              if (step == 0) slope += direction * bucket.gradients.data<double>()[i];
            }
          }
        };
        shift(0);
        constexpr double kStep = 1e-6;
        shift(kStep);
        const double above = rig.Loss(nullptr);
        shift(-2 * kStep);
        const double below = rig.Loss(nullptr);
        EXPECT_NEAR((above - below) / (2 * kStep) / slope, 1.0, 1e-6) << type;
      }
    }
  }
}

// Notes when sums of the layers start, and when they are first waited for.
class LoggingGroup : public ForwardingGroup {
 public:
  LoggingGroup(std::unique_ptr<Communicator> group, std::string* log)
      : ForwardingGroup(std::move(group)), log_(log) {}

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override {
    WorkPtr work = ForwardingGroup::AllReduce(buffer, op, label);
    if (label.layer < 0) return work;
    const std::string name = fmt::format("{}{}", label.what, label.layer);
    *log_ += " +" + name;
    return std::make_shared<LoggedWork>(std::move(work), " -" + name, log_);
  }

 private:
  class LoggedWork : public Work {
   public:
    LoggedWork(WorkPtr work, std::string note, std::string* log)
        : work_(std::move(work)), note_(std::move(note)), log_(log) {}
    absl::Status Wait() override {
      *log_ += std::exchange(note_, "");
      return work_->Wait();
    }
    bool done() const override { return work_->done(); }

   private:
    WorkPtr work_;
    std::string note_;
    std::string* log_;
  };

  std::string* log_;
};

// Each sum is waited for when the next module's has started, forward and backward.
TEST(Residual, SumsRunBesideTheNextModule) {
  RunRanks(2, [](World& world) {
    std::string log;
    const Layout layout = {.tp = 2, .etp = 2};
    const Mesh mesh(&world, layout, [&](std::unique_ptr<Communicator> group) {
      return std::make_unique<LoggingGroup>(std::move(group), &log);
    });
    config::ModelConfig config = Config("llama", {0, 1});
    config.set_num_hidden_layers(2);
    Rig rig(config, mesh.part());
    ParallelGroups groups = mesh.Groups();
    rig.ctx.groups = &groups;
    Tape tape(&ops::Accumulate);
    rig.Loss(&tape);
    EXPECT_EQ(log, " +attention0 +mlp0 -attention0 +attention1 -mlp0 +mlp1 -attention1 -mlp1");
    log.clear();
    tape.Backward(rig.ctx);
    EXPECT_EQ(log, " +mlp1 +attention1 -mlp1 +mlp0 -attention1 +attention0 -mlp0 -attention0");
    EXPECT_TRUE(groups.failure.ok());
  });
}

// Cut between any two modules, with a tape of its own for each part, a stream is what it was whole.
TEST(Residual, CrossesStages) {
  HostAllocator allocator;
  ParameterStore store;
  Context ctx{.allocator = &allocator, .parameters = &store};
  const ParamId norm = store.Add({.name = "norm", .shape = {kWidth}});
  store.Allocate(allocator, DType::kF32, {});
  std::fill_n(store.Acquire(norm, Lease::kForward).data<float>(), kWidth, 1.5f);
  std::vector<float> start(kTokens * kWidth);
  for (size_t i = 0; i < start.size(); ++i) start[i] = std::sin(static_cast<float>(i));
  const Tensor x = Tensor::Of<float>(allocator, {kTokens, kWidth}, start);

  const auto run = [&](int cut) {
    ResidualStream stream({x});
    for (int i = 0; i < 5; ++i) {
      if (i == cut) stream = ResidualStream::Enter(stream.Leave(ctx));
      const Var read = stream.Read(ctx, Wiring::kLadder, {norm, 1e-5f});
      stream.Add(ctx, Wiring::kLadder, [h = ops::Scale(ctx, read, 0.3f)](Context&) { return h; });
    }
    return stream.Land(ctx).value;
  };
  const Tensor want = run(-1);
  for (int cut = 0; cut < 5; ++cut) {
    EXPECT_EQ(std::memcmp(run(cut).raw(), want.raw(), want.bytes()), 0) << cut;
  }
}

}  // namespace
}  // namespace cadre
