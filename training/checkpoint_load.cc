#include <cstring>
#include <set>
#include <string>

#include "core/safetensors.h"
#include "training/checkpoint.h"
#include "training/checkpoint_state.h"

namespace cadre {
namespace {

// Values of a file into a tensor of any floating dtype. The file's bytes may be unaligned.
absl::Status Fill(const SafetensorsFile& file, const SafetensorsEntry& entry, const Tensor& to) {
  auto dims = to.shape().dims();
  if (!std::equal(dims.begin(), dims.end(), entry.shape.begin(), entry.shape.end())) {
    return InvalidArgument("{}: tensor {} has shape {}, the model wants {}", file.path(),
                           entry.name, Shape(entry.shape).ToString(), to.shape().ToString());
  }
  std::optional<DType> dtype = ToDType(entry.type);
  if (dtype != DType::kF32 && dtype != DType::kF64) {
    return InvalidArgument("{}: tensor {} is {}; F32 or F64 is allowed", file.path(), entry.name,
                           Name(entry.type));
  }
  const std::byte* bytes = file.Bytes(entry).data();
  if (*dtype == to.dtype()) {
    std::memcpy(to.raw(), bytes, to.bytes());
    return absl::OkStatus();
  }
  VisitFloat(to.dtype(), [&]<typename To>(To) {
    To* target = to.data<To>();
    for (int64_t i = 0; i < to.numel(); ++i) {
      if (*dtype == DType::kF32) {
        float value;
        std::memcpy(&value, bytes + i * sizeof(value), sizeof(value));
        target[i] = static_cast<To>(value);
      } else {
        double value;
        std::memcpy(&value, bytes + i * sizeof(value), sizeof(value));
        if constexpr (std::is_same_v<To, double>) {
          target[i] = value;
        } else {
          target[i] = static_cast<To>(static_cast<float>(value));
        }
      }
    }
  });
  return absl::OkStatus();
}

// Every parameter that changes and has a tensor in `buckets` is filled, and the file has no others.
absl::Status LoadSlot(const std::string& path, const ParameterStore& store,
                      const std::vector<Tensor>& buckets) {
  CADRE_ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(path));
  size_t used = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    const Tensor& bucket = buckets[store.bucket_of(id)];
    if (!bucket.defined() || !Changes(store.spec(id))) continue;
    const SafetensorsEntry* entry = file.Find(store.spec(id).name);
    if (entry == nullptr) {
      return InvalidArgument("{}: parameter {} is missing; was it frozen in that run?", path,
                             store.spec(id).name);
    }
    CADRE_RETURN_IF_ERROR(Fill(file, *entry, store.View(bucket, id)));
    ++used;
  }
  if (used == file.tensors().size()) return absl::OkStatus();
  for (const SafetensorsEntry& entry : file.tensors()) {
    ParamId id = store.Find(entry.name);
    if (id == kNoParam || !Changes(store.spec(id)) || !buckets[store.bucket_of(id)].defined()) {
      return InvalidArgument("{}: tensor {} belongs to no parameter that this run trains", path,
                             entry.name);
    }
  }
  return absl::OkStatus();
}

// Compute weights are the rounded masters.
void RoundMasters(const ParameterStore& store, const std::vector<Tensor>& precise) {
  for (size_t b = 0; b < precise.size(); ++b) {
    const Tensor& weights = store.buckets()[b].weights;
    if (!BucketChanges(store, b) || weights.dtype() != DType::kBF16) continue;
    const float* from = precise[b].data<float>();
    BF16* to = weights.data<BF16>();
    for (int64_t i = 0; i < weights.numel(); ++i) to[i] = BF16(from[i]);
  }
}

// "line 3: a: 1, not a: 2" of the first line that differs.
std::string FirstDifference(const std::string& saved, const std::string& wanted) {
  size_t line = 1, a = 0, b = 0;
  while (a < saved.size() || b < wanted.size()) {
    size_t end_a = std::min(saved.find('\n', a), saved.size());
    size_t end_b = std::min(wanted.find('\n', b), wanted.size());
    std::string left = saved.substr(std::min(a, saved.size()), end_a - std::min(a, saved.size()));
    std::string right =
        wanted.substr(std::min(b, wanted.size()), end_b - std::min(b, wanted.size()));
    if (left != right) return fmt::format("`{}` there, `{}` here (line {})", left, right, line);
    a = std::min(end_a + 1, saved.size());
    b = std::min(end_b + 1, wanted.size());
    ++line;
  }
  return "none";
}

}  // namespace

absl::Status LoadCheckpoint(const FoundCheckpoint& found, const std::string& model_config,
                            const LoadWeightsFn& load_weights, ParameterStore& store,
                            Optimizer& optimizer) {
  const CheckpointState& state = found.manifest.state;
  if (state.model_config != model_config) {
    return InvalidArgument("{}: the checkpoint's model differs from this run's: {}", found.path,
                           FirstDifference(state.model_config, model_config));
  }
  CADRE_RETURN_IF_ERROR(load_weights(found.path));
  std::vector<Tensor> precise = PreciseWeights(store, optimizer);
  CADRE_RETURN_IF_ERROR(LoadSlot(
      fmt::format("{}/optimizer/{}.safetensors", found.path, kMasterSlot), store, precise));
  for (const OptimizerSlot& slot : optimizer.Slots()) {
    if (slot.name == kMasterSlot) continue;
    CADRE_RETURN_IF_ERROR(LoadSlot(
        fmt::format("{}/optimizer/{}.safetensors", found.path, slot.name), store, slot.buckets));
  }
  RoundMasters(store, precise);
  optimizer.set_updates(state.updates);
  store.WeightsChanged();
  return absl::OkStatus();
}

absl::Status LoadPreciseWeights(const std::string& checkpoint, ParameterStore& store) {
  CADRE_ASSIGN_OR_RETURN(
      SafetensorsFile file,
      SafetensorsFile::Open(fmt::format("{}/optimizer/{}.safetensors", checkpoint, kMasterSlot)));
  for (const SafetensorsEntry& entry : file.tensors()) {
    ParamId id = store.Find(entry.name);
    if (id == kNoParam) {
      return InvalidArgument("{}: tensor {} belongs to no parameter of the model", file.path(),
                             entry.name);
    }
    const Tensor& weights = store.buckets()[store.bucket_of(id)].weights;
    CADRE_RETURN_IF_ERROR(Fill(file, entry, store.View(weights, id)));
  }
  store.WeightsChanged();
  return absl::OkStatus();
}

}  // namespace cadre
