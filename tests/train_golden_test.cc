// Whole training runs against PyTorch's: forward, backward, clipping, decay and AdamW, step by step
// from one saved start. See tests/golden/README.md for the fixtures; golden/make_train_golden.py
// states what they hold.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/host_allocator.h"
#include "core/ops/gemm.h"
#include "core/safetensors.h"
#include "model/model.h"
#include "tests/golden/golden_case.h"
#include "training/gradient_norm.h"
#include "training/optimizer.h"
#include "training/train_step.h"

namespace cadre {
namespace {

template <typename T>
std::vector<T> Values(const SafetensorsFile& file, const std::string& name) {
  const SafetensorsEntry* entry = file.Find(name);
  CADRE_CHECK(entry != nullptr, "{} has no {}", file.path(), name);
  std::span<const std::byte> bytes = file.Bytes(*entry);
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

// Row `step` of the fixture, cut into its sequences.
StepBatches ReadRow(const SafetensorsFile& file, size_t steps, size_t step) {
  const std::vector<int32_t> tokens = Values<int32_t>(file, "tokens");
  const std::vector<int32_t> lengths = Values<int32_t>(file, "lengths");
  const size_t row = tokens.size() / steps, sequences = lengths.size() / steps;
  PackedBatch packed{.offsets = {0}, .row_offsets = {0, static_cast<int32_t>(row)}};
  for (size_t s = 0; s < sequences; ++s) {
    const int32_t length = lengths[step * sequences + s];
    for (int32_t t = 0; t < length; ++t) {
      const size_t at = step * row + packed.ids.size();
      packed.ids.push_back(tokens[at]);
      packed.positions.push_back(t);
      packed.targets.push_back(t + 1 < length ? tokens[at + 1] : -1);
    }
    packed.loss_tokens += length - 1;
    packed.offsets.push_back(static_cast<int32_t>(packed.ids.size()));
  }
  StepBatches batches{.tokens = static_cast<int64_t>(row),
                      .loss_tokens = packed.loss_tokens,
                      .sequences = static_cast<int64_t>(sequences)};
  batches.micro.push_back(std::move(packed));
  return batches;
}

struct Errors {
  double loss = 0;           // relative, worst step
  double gradient = 0;       // relative L2 at step 1, worst tensor
  double gradient_norm = 0;  // relative, worst step
  std::string worst_gradient;
  int gradients = 0;
  size_t steps = 0;
};

struct Run {
  std::string name;
  DType dtype = DType::kF32;
  int threads = 1;
  std::function<void(config::TrainConfig&)> change;  // a rule broken on purpose
};

class Replay {
 public:
  explicit Replay(const Run& run)
      : run_(run), folder_(std::string(golden::kFixtures) + "train_" + run.name) {
    ctx_ = {.allocator = &allocator_, .threads = run.threads, .packed = &packed_};
    std::ifstream(folder_ + "/train.json") >> rules_;
    config::OptimizerConfig& adam = *config_.mutable_optimizer();
    adam.set_beta1(rules_["betas"][0]);
    adam.set_beta2(rules_["betas"][1]);
    adam.set_eps(rules_["eps"]);
    adam.set_weight_decay(rules_["weight_decay"]);
    adam.set_clip_grad_norm(rules_["max_norm"]);
    adam.set_decay(config::DECAY_KIND_MATRICES);
    config_.mutable_moe()->set_balance_loss_coef(0);
    if (run.change) run.change(config_);
  }

  absl::StatusOr<Errors> Play() {
    CADRE_ASSIGN_OR_RETURN(auto model,
                           LoadModel(ctx_, folder_, {.dtype = run_.dtype, .gradients = true}));
    ctx_.parameters = &model->parameters();
    CADRE_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(folder_ + "/train.safetensors"));
    CADRE_ASSIGN_OR_RETURN(auto optimizer,
                           MakeOptimizer(config_.optimizer(), model->parameters(), allocator_));
    optimizer->AdoptWeights();
    const auto chunks = TrainableChunks(model->parameters());
    const std::vector<double> want = Losses(file);
    const std::vector<float> norms = Values<float>(file, "grad_norm");
    TrainStep runner(*model, config_, {});
    Errors errors{.steps = want.size()};
    for (size_t step = 0; step < want.size(); ++step) {
      ctx_.step = static_cast<int64_t>(step);
      const StepLosses losses = runner.Run(ctx_, ReadRow(file, want.size(), step)).value();
      errors.loss = std::max(errors.loss, std::fabs(losses.total() - want[step]) / want[step]);
      if (step == 0) CompareGradients(file, &errors);
      const double norm = std::sqrt(SquaredNorm(ctx_, model->parameters(), chunks));
      errors.gradient_norm =
          std::max(errors.gradient_norm, std::fabs(norm - norms[step]) / norms[step]);
      optimizer->Step(ctx_,
                      {.lr = rules_["lr"][step],
                       .gradient_scale = ClipFactor(norm, config_.optimizer().clip_grad_norm())});
    }
    return errors;
  }

 private:
  std::vector<double> Losses(const SafetensorsFile& file) const {
    if (run_.dtype == DType::kF64) return Values<double>(file, "losses_f64");
    const std::vector<float> losses = Values<float>(file, "losses");
    return {losses.begin(), losses.end()};
  }

  void CompareGradients(const SafetensorsFile& file, Errors* errors) {
    for (const SafetensorsEntry& entry : file.tensors()) {
      if (!entry.name.starts_with("grad.")) continue;
      const std::vector<double> got = golden::StoredGradient(ctx_, entry.name.substr(5));
      const std::vector<float> want = Values<float>(file, entry.name);
      CADRE_CHECK(got.size() == want.size(), "{}: {} values", entry.name, got.size());
      double difference = 0, square = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        difference += (got[i] - want[i]) * (got[i] - want[i]);
        square += static_cast<double>(want[i]) * want[i];
      }
      const double error = std::sqrt(difference / square);
      ++errors->gradients;
      if (error <= errors->gradient) continue;
      errors->gradient = error;
      errors->worst_gradient = entry.name;
    }
  }

  const Run run_;
  const std::string folder_;
  nlohmann::json rules_;
  config::TrainConfig config_;
  HostAllocator allocator_;
  PackedWeights packed_;
  Context ctx_;
};

struct Bounds {
  double loss, gradient, gradient_norm;
};

void ExpectWithin(const Run& run, size_t steps, const Bounds& bounds) {
  absl::StatusOr<Errors> errors = Replay(run).Play();
  ASSERT_TRUE(errors.ok()) << Message(errors.status());
  EXPECT_EQ(errors->steps, steps);
  EXPECT_GT(errors->gradients, 10);
  EXPECT_LT(errors->loss, bounds.loss);
  EXPECT_LT(errors->gradient, bounds.gradient) << errors->worst_gradient;
  EXPECT_LT(errors->gradient_norm, bounds.gradient_norm);
  testing::Test::RecordProperty("loss", std::to_string(errors->loss * 1e12) + "e-12");
  testing::Test::RecordProperty("gradient", std::to_string(errors->gradient * 1e12) + "e-12");
}

constexpr Bounds kF32 = {.loss = 1e-5, .gradient = 1e-5, .gradient_norm = 1e-4};
// transformers rounds inside a f64 run too: its norms, attention and router softmax and rotary
// tables are f32 whatever the weights are. That, not our f64, sets these bounds.
constexpr Bounds kF64 = {.loss = 1e-7, .gradient = 2e-6, .gradient_norm = 1e-4};

TEST(TrainGolden, Llama) {
  ExpectWithin({.name = "llama"}, 50, kF32);
  ExpectWithin({.name = "llama", .threads = 2}, 50, kF32);
}

TEST(TrainGolden, Mixtral) {
  ExpectWithin({.name = "mixtral"}, 20, kF32);
  ExpectWithin({.name = "mixtral", .threads = 2}, 20, kF32);
}

TEST(TrainGolden, LlamaF64) { ExpectWithin({.name = "llama", .dtype = DType::kF64}, 50, kF64); }

TEST(TrainGolden, MixtralF64) { ExpectWithin({.name = "mixtral", .dtype = DType::kF64}, 20, kF64); }

// Each rule matters: broken, the losses leave the bound.
TEST(TrainGolden, EveryRuleShows) {
  using config::TrainConfig;
  const std::pair<const char*, void (*)(TrainConfig&)> changes[] = {
      {"no decay", [](TrainConfig& c) { c.mutable_optimizer()->set_weight_decay(0); }},
      {"embedding decays",
       [](TrainConfig& c) {
         c.mutable_optimizer()->set_decay(config::DECAY_KIND_MATRICES_AND_EMBEDDINGS);
       }},
      {"no clipping", [](TrainConfig& c) { c.mutable_optimizer()->set_clip_grad_norm(0); }},
      {"beta2", [](TrainConfig& c) { c.mutable_optimizer()->set_beta2(0.999); }},
      {"eps", [](TrainConfig& c) { c.mutable_optimizer()->set_eps(1e-6); }},
  };
  for (const char* name : {"llama", "mixtral"}) {
    for (const auto& [what, change] : changes) {
      absl::StatusOr<Errors> errors = Replay({.name = name, .change = change}).Play();
      ASSERT_TRUE(errors.ok()) << Message(errors.status());
      EXPECT_GT(errors->loss, kF32.loss) << name << ": " << what;
    }
  }
}

TEST(TrainGolden, BalanceLossShows) {
  absl::StatusOr<Errors> errors =
      Replay(
          {.name = "mixtral",
           .change = [](config::TrainConfig& c) { c.mutable_moe()->set_balance_loss_coef(0.01); }})
          .Play();
  ASSERT_TRUE(errors.ok()) << Message(errors.status());
  EXPECT_GT(errors->loss, kF32.loss);
  EXPECT_GT(errors->gradient, kF32.gradient);
}

}  // namespace
}  // namespace cadre
