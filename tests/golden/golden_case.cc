#include "tests/golden/golden_case.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/host_allocator.h"
#include "core/ops/elementwise.h"
#include "core/ops/linear_cross_entropy.h"
#include "core/safetensors.h"
#include "model/model.h"
#include "model/param_layout.h"

namespace cadre::golden {
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

std::vector<double> Doubles(Context& ctx, const Tensor& tensor) {
  Tensor wide = ops::CastTensor(ctx, tensor, DType::kF64);
  return {wide.span<double>().begin(), wide.span<double>().end()};
}

double Error(std::span<const double> got, std::span<const float> want) {
  CADRE_CHECK(got.size() == want.size(), "{} values for {}", got.size(), want.size());
  double difference = 0.0, largest = 0.0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (!std::isfinite(got[i])) return INFINITY;
    difference = std::max(difference, std::fabs(got[i] - want[i]));
    largest = std::max(largest, std::fabs(static_cast<double>(want[i])));
  }
  return difference / largest;
}

struct Sequences {
  std::vector<std::vector<int32_t>> ids;
  std::vector<int32_t> targets;  // packed
  int64_t predicted = 0;
};

Sequences ReadSequences(const SafetensorsFile& file) {
  Sequences s;
  for (int i = 0; file.Find(fmt::format("input_ids.{}", i)) != nullptr; ++i) {
    std::vector<int64_t> wide = Values<int64_t>(file, fmt::format("input_ids.{}", i));
    s.ids.emplace_back(wide.begin(), wide.end());
    for (size_t t = 1; t < wide.size(); ++t) s.targets.push_back(static_cast<int32_t>(wide[t]));
    s.targets.push_back(-1);
    s.predicted += static_cast<int64_t>(wide.size()) - 1;
  }
  return s;
}

}  // namespace

std::vector<double> StoredGradient(Context& ctx, const std::string& tensor) {
  ParameterStore& store = *ctx.parameters;
  std::vector<double> stored;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    auto holds = [&](const ParamSource& source) { return source.tensor == tensor; };
    auto source = std::ranges::find_if(spec.sources, holds);
    if (source == spec.sources.end()) continue;
    stored.resize(static_cast<size_t>(source->shape.numel()));
    const std::vector<double> local = Doubles(ctx, store.Gradient(id));
    ForEachRun(spec, 0, spec.shape.numel(), [&](const ParamRun& run) {
      if (!holds(*run.source)) return;
      for (int64_t i = 0; i < run.count; ++i) {
        stored[static_cast<size_t>(run.stored + i * run.stored_stride)] =
            local[static_cast<size_t>(run.local + i)];
      }
    });
  }
  CADRE_CHECK(!stored.empty(), "no parameter holds {}", tensor);
  return stored;
}

namespace {

void CompareGradients(Context& ctx, const SafetensorsFile& file, GoldenErrors* errors) {
  for (const SafetensorsEntry& entry : file.tensors()) {
    if (!entry.name.starts_with("grad.")) continue;
    double error =
        Error(StoredGradient(ctx, entry.name.substr(5)), Values<float>(file, entry.name));
    ++errors->gradients_compared;
    if (!(error <= errors->gradients)) {
      errors->gradients = error;
      errors->worst_gradient = entry.name.substr(5);
    }
  }
}

void CompareChoices(const SafetensorsFile& file, const Batch& batch, const DecoderOutput& out,
                    GoldenErrors* errors) {
  for (const LayerRouting& routing : out.routing) {
    int64_t k = routing.ids.dim(1);
    const int32_t* ids = routing.ids.data<int32_t>();
    for (int64_t s = 0; s < batch.sequences(); ++s) {
      std::vector<int32_t> want =
          Values<int32_t>(file, fmt::format("experts.{}.{}", routing.layer, s));
      for (size_t row = 0; row < want.size() / static_cast<size_t>(k); ++row) {
        const int32_t* got =
            ids + (batch.offsets[static_cast<size_t>(s)] + static_cast<int64_t>(row)) * k;
        ++errors->choices_compared;
        errors->differing_choices +=
            !std::equal(got, got + k, want.data() + row * static_cast<size_t>(k));
      }
    }
  }
}

void ScaleParameter(Context& ctx, const std::string& name) {
  ParamId id = ctx.parameters->Find(name);
  CADRE_CHECK(id != kNoParam, "no parameter {}", name);
  LeasedWeight weight(ctx, id, Lease::kForward);
  std::vector<double> values = Doubles(ctx, weight.tensor());
  for (size_t i = 0; i < values.size(); ++i) values[i] = values[i] * 1.1 + 0.01 * (i % 3);
  ops::ConvertInto(
      ctx,
      Tensor::Of<double>(*ctx.allocator, weight.tensor().shape(), std::span<const double>(values)),
      weight.tensor());
  ctx.parameters->WeightsChanged();
}

void CompareLogits(Context& ctx, const SafetensorsFile& file, const Batch& batch,
                   const Tensor& logits, GoldenErrors* errors) {
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    size_t at = static_cast<size_t>(s);
    int64_t rows = batch.offsets[at + 1] - batch.offsets[at];
    Tensor part = logits.Narrow(batch.offsets[at], rows);
    double error = Error(Doubles(ctx, part), Values<float>(file, fmt::format("logits.{}", s)));
    errors->logits = std::max(errors->logits, error);
  }
}

}  // namespace

absl::StatusOr<GoldenErrors> RunGolden(const GoldenRun& run) {
  std::string folder = kFixtures + run.name;
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = run.threads};
  CADRE_ASSIGN_OR_RETURN(HfConfig config, LoadHfConfig(folder));
  if (run.change_config) run.change_config(config.model);
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
                         CreateModel(ctx, config, {.dtype = run.dtype, .gradients = run.backward}));
  ctx.parameters = &model->parameters();
  CADRE_RETURN_IF_ERROR(LoadWeights(ctx, folder, config).status());
  if (!run.scaled_parameter.empty()) ScaleParameter(ctx, run.scaled_parameter);

  CADRE_ASSIGN_OR_RETURN(SafetensorsFile file,
                         SafetensorsFile::Open(folder + "/golden.safetensors"));
  Sequences sequences = ReadSequences(file);
  Batch batch = PackSequences(allocator, sequences.ids);
  Tape tape(ops::Accumulate);
  if (run.backward) ctx.tape = &tape;
  DecoderOutput out = model->decoder().Forward(ctx, batch);
  GoldenErrors errors;
  ops::LinearCrossEntropyResult loss = ops::LinearCrossEntropy(
      ctx, out.hidden,
      {.weight = model->decoder().head(),
       .targets = Tensor::Of<int32_t>(allocator, {batch.tokens()},
                                      std::span<const int32_t>(sequences.targets)),
       .scale = 1.0 / static_cast<double>(sequences.predicted)});
  double want = Values<float>(file, "loss")[0];
  errors.loss = std::fabs(loss.loss.value.data<double>()[0] - want) / want;
  CompareLogits(ctx, file, batch, ops::Logits(ctx, out.hidden.value, model->decoder().head()),
                &errors);
  CompareChoices(file, batch, out, &errors);
  if (!run.backward) return errors;
  const double one = 1.0;
  tape.Seed(loss.loss.slot, Tensor::Of<double>(allocator, {1}, std::span<const double>(&one, 1)));
  tape.Backward(ctx);
  CompareGradients(ctx, file, &errors);
  return errors;
}

absl::StatusOr<std::vector<std::string>> ParameterNames(const std::string& fixture) {
  CADRE_ASSIGN_OR_RETURN(HfConfig config, LoadHfConfig(kFixtures + fixture));
  CADRE_ASSIGN_OR_RETURN(DecoderSpec spec, ResolveModelConfig(config.model));
  ParameterStore store;
  CADRE_RETURN_IF_ERROR(Decoder::Create(spec, {}, store).status());
  std::vector<std::string> names;
  for (ParamId id = 0; id < store.size(); ++id) names.push_back(store.spec(id).name);
  return names;
}

}  // namespace cadre::golden
