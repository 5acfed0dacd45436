#include <algorithm>
#include <map>
#include <set>
#include <string>

#include "core/safetensors_folder.h"
#include "core/yaml_difference.h"
#include "model/hf_folder.h"
#include "training/checkpoint.h"

namespace cadre {
namespace {

absl::StatusOr<SafetensorsFolder::Tensor> Lookup(const SafetensorsFolder& files,
                                                 const std::string& folder,
                                                 const ParamSource& source) {
  const SafetensorsFolder::Tensor found = files.Find(source.tensor);
  if (found.entry == nullptr) {
    return InvalidArgument("{}: tensor {} is missing; was it frozen in that run?", folder,
                           source.tensor);
  }
  const SafetensorsEntry& entry = *found.entry;
  if (!std::ranges::equal(source.shape.dims(), entry.shape)) {
    return InvalidArgument("{}: tensor {} has shape {}, the model wants {}", found.file->path(),
                           entry.name, Shape(entry.shape).ToString(), source.shape.ToString());
  }
  const std::optional<DType> dtype = ToDType(entry.type);
  if (dtype != DType::kF32 && dtype != DType::kF64) {
    return InvalidArgument("{}: tensor {} is {}; F32 or F64 is allowed", found.file->path(),
                           entry.name, Name(entry.type));
  }
  return found;
}

// A set of full-precision tensors: one slot.
struct SlotFiles {
  std::string path;  // for errors
  SafetensorsFolder files;

  static absl::StatusOr<SlotFiles> Open(const std::string& checkpoint, const std::string& name) {
    const std::string folder = checkpoint + "/optimizer";
    CADRE_ASSIGN_OR_RETURN(SafetensorsFolder files, SafetensorsFolder::Open(folder, name));
    return SlotFiles{fmt::format("{}/{}", folder, name), std::move(files)};
  }

  // The piece's elements; their bytes alone are read.
  absl::Status Fill(const ParamSpec& spec, const ParamPiece& piece) const {
    const int64_t begin = piece.begin, end = begin + piece.values.numel();
    const DType to = piece.values.dtype();
    int64_t local = 0;
    for (const ParamSource& source : spec.sources) {
      const int64_t first = std::max(begin, local);
      local += BlockElements(source);
      const int64_t last = std::min(end, local);
      if (first >= last) continue;
      CADRE_ASSIGN_OR_RETURN(auto found, Lookup(files, path, source));
      const DType from = *ToDType(found.entry->type);
      const std::byte* stored = found.Bytes().data();
      ForEachRun(spec, first, last, [&](const ParamRun& run) {
        ConvertElements(
            {.from = from, .to = to, .count = run.count, .from_stride = run.stored_stride},
            stored + static_cast<size_t>(run.stored) * SizeOf(from),
            piece.values.raw() + static_cast<size_t>(run.local - begin) * SizeOf(to));
      });
    }
    return absl::OkStatus();
  }

  // That no tensor belongs to a parameter which this run does not change; a part of a model leaves
  // tensors that it does not know to other ranks.
  absl::Status CheckLeftovers(const ParameterStore& store) const {
    std::map<std::string_view, bool> changes;
    for (ParamId id = 0; id < store.size(); ++id) {
      for (const ParamSource& source : store.spec(id).sources) {
        changes[source.tensor] |= Changes(store.spec(id));
      }
    }
    for (const auto& tensor : files.tensors()) {
      const std::string& name = tensor.entry->name;
      auto it = changes.find(name);
      if (it == changes.end() ? store.part() : it->second) continue;
      return InvalidArgument("{}: tensor {} belongs to no parameter that this run trains", path,
                             name);
    }
    return absl::OkStatus();
  }
};

absl::Status LoadSlot(const std::string& checkpoint, const ParameterStore& store,
                      const StateSlot& slot) {
  CADRE_ASSIGN_OR_RETURN(const SlotFiles files, SlotFiles::Open(checkpoint, slot.name));
  for (const ParamPiece& piece : slot.pieces) {
    CADRE_RETURN_IF_ERROR(files.Fill(store.spec(piece.param), piece));
  }
  return files.CheckLeftovers(store);
}

// Compute weights are the rounded masters.
void RoundMasters(const ParameterStore& store, const std::vector<ParamPiece>& masters) {
  for (const ParamPiece& piece : masters) {
    const ParamBucket& bucket = store.buckets()[static_cast<size_t>(store.bucket_of(piece.param))];
    if (bucket.dtype == piece.values.dtype()) continue;
    const int64_t count = piece.values.numel();
    const Tensor weights = bucket.WeightsOf({store.offset_of(piece.param) + piece.begin, count});
    ConvertElements({.from = piece.values.dtype(), .to = bucket.dtype, .count = count},
                    piece.values.raw(), weights.raw());
  }
}

std::string FirstDifference(const std::string& saved, const std::string& wanted) {
  const auto found = CompareYaml(saved, wanted);
  if (!found.ok()) return Message(found.status());
  if (found->empty()) return "none";
  const YamlDifference& field = found->front();
  return fmt::format("{} is {} there, {} here", field.path, field.first, field.second);
}

}  // namespace

absl::Status LoadCheckpointState(const FoundCheckpoint& found, const std::string& model_config,
                                 const LoadWeightsFn& load_weights, ParameterStore& store,
                                 const StatePart& state) {
  const std::string& saved_config = found.manifest.state.model_config;
  if (saved_config != model_config) {
    return InvalidArgument("{}: the checkpoint's model differs from this run's: {}", found.path,
                           FirstDifference(saved_config, model_config));
  }
  CADRE_RETURN_IF_ERROR(load_weights(found.path));
  const StateSlot master = MasterSlot(store, state.weights);
  CADRE_RETURN_IF_ERROR(LoadSlot(found.path, store, master));
  for (const StateSlot& slot : state.slots) {
    CADRE_RETURN_IF_ERROR(LoadSlot(found.path, store, slot));
  }
  RoundMasters(store, master.pieces);
  store.WeightsChanged();
  return absl::OkStatus();
}

absl::Status LoadCheckpoint(const FoundCheckpoint& found, const std::string& model_config,
                            const LoadWeightsFn& load_weights, ParameterStore& store,
                            Optimizer& optimizer, const std::vector<Shard>& owned) {
  CADRE_RETURN_IF_ERROR(LoadCheckpointState(found, model_config, load_weights, store,
                                            StateOf(store, optimizer, owned)));
  optimizer.set_updates(found.manifest.state.updates);
  return absl::OkStatus();
}

absl::Status LoadPreciseWeights(const std::string& checkpoint, ParameterStore& store) {
  CADRE_ASSIGN_OR_RETURN(const SlotFiles master,
                         SlotFiles::Open(checkpoint, std::string(kMasterSlot)));
  std::set<std::string_view> known;
  for (const ParamPiece& piece : WholeWeights(store)) {
    const ParamSpec& spec = store.spec(piece.param);
    for (const ParamSource& source : spec.sources) known.insert(source.tensor);
    if (spec.sources.empty() || master.files.Find(spec.sources[0].tensor).entry == nullptr)
      continue;
    CADRE_RETURN_IF_ERROR(master.Fill(spec, piece));
  }
  for (const auto& tensor : master.files.tensors()) {
    if (store.part() || known.contains(tensor.entry->name)) continue;
    return InvalidArgument("{}: tensor {} belongs to no parameter of the model", master.path,
                           tensor.entry->name);
  }
  store.WeightsChanged();
  return absl::OkStatus();
}

}  // namespace cadre
