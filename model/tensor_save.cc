#include "model/tensor_save.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/safetensors_folder.h"
#include "model/param_layout.h"
#include "parallel/agree.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

using Json = nlohmann::json;

// What this rank has of a stored tensor.
struct Share {
  const ParamPiece* piece;
  const ParamSource* source;
  int64_t local;  // where the source's block begins in the parameter
};

struct PlannedTensor {
  SafetensorsEntry entry;
  std::vector<Share> shares;
  int64_t handed_in = 0;  // elements, of all ranks
  const CarriedTensor* carried = nullptr;
};
using Plan = std::map<std::string, PlannedTensor>;

Plan OwnPlan(const ParameterStore& store, std::span<const ParamPiece> pieces,
             const TensorFiles& files) {
  Plan plan;
  for (const ParamPiece& piece : pieces) {
    const ParamSpec& spec = store.spec(piece.param);
    const int64_t begin = piece.begin, end = begin + piece.values.numel();
    int64_t local = 0;
    for (const ParamSource& source : spec.sources) {
      const int64_t next = local + BlockElements(source);
      const int64_t count = std::min(end, next) - std::max(begin, local);
      if (count > 0) {
        PlannedTensor& tensor = plan[source.tensor];
        tensor.entry.name = source.tensor;
        tensor.entry.shape.assign(source.shape.dims().begin(), source.shape.dims().end());
        tensor.entry.type = files.type(spec, source, piece.values.dtype());
        tensor.shares.push_back({&piece, &source, local});
        tensor.handed_in += count;
      }
      local = next;
    }
  }
  return plan;
}

std::string Encode(const Plan& plan) {
  Json all = Json::array();
  for (const auto& [name, tensor] : plan) {
    all.push_back({name, Name(tensor.entry.type), tensor.entry.shape, tensor.handed_in});
  }
  return all.dump();
}

// Another rank's tensors into the plan.
absl::Status Merge(const std::string& text, size_t rank, Plan* plan) {
  try {
    for (const Json& item : Json::parse(text)) {
      SafetensorsEntry entry{.name = item.at(0).get<std::string>(),
                             .shape = item.at(2).get<std::vector<int64_t>>()};
      const auto type = ParseStoredType(item.at(1).get<std::string>());
      if (!type) return InvalidArgument("rank {}: tensor {}: unknown type", rank, entry.name);
      entry.type = *type;
      auto [it, fresh] = plan->try_emplace(entry.name);
      PlannedTensor& tensor = it->second;
      if (fresh) {
        tensor.entry = entry;
      } else if (tensor.entry.type != entry.type || tensor.entry.shape != entry.shape) {
        return InvalidArgument("tensor {}: rank {} has another shape or type of it", entry.name,
                               rank);
      }
      tensor.handed_in += item.at(3).get<int64_t>();
    }
  } catch (const std::exception& failure) {
    return InvalidArgument("rank {}: its list of tensors: {}", rank, failure.what());
  }
  return absl::OkStatus();
}

// Every element once: the ranks' shares add up.
absl::Status CheckCounts(const Plan& plan) {
  for (const auto& [name, tensor] : plan) {
    int64_t elements = 1;
    for (int64_t dim : tensor.entry.shape) elements *= dim;
    if (tensor.handed_in != elements) {
      return InvalidArgument("tensor {}: the ranks hand in {} elements, it has {}", name,
                             tensor.handed_in, elements);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Plan> WholePlan(const ParameterStore& store, std::span<const ParamPiece> pieces,
                               const TensorFiles& files, Communicator* group) {
  Plan plan = OwnPlan(store, pieces, files);
  if (group != nullptr) {
    CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> texts,
                           GatherText(*group, Encode(plan), {"tensors to save"}));
    for (size_t rank = 0; rank < texts.size(); ++rank) {
      if (static_cast<int>(rank) == group->rank()) continue;
      CADRE_RETURN_IF_ERROR(Merge(texts[rank], rank, &plan));
    }
  }
  CADRE_RETURN_IF_ERROR(CheckCounts(plan));
  if (files.carried == nullptr) return plan;
  for (const CarriedTensor& carried : *files.carried) {
    plan[carried.entry.name] = {.entry = carried.entry, .carried = &carried};
  }
  return plan;
}

std::string_view View(const std::byte* bytes, size_t size) {
  return {reinterpret_cast<const char*>(bytes), size};
}

// One tensor's elements of this rank into its place, a window at a time.
class TensorWriter {
 public:
  TensorWriter(const PlannedTensor& tensor, const InPlaceFile& file, int64_t offset)
      : tensor_(tensor), file_(file), offset_(offset), dtype_(*ToDType(tensor.entry.type)) {}

  absl::Status Write() {
    const auto width = static_cast<int64_t>(SizeOf(dtype_));
    const int64_t elements = static_cast<int64_t>(tensor_.entry.end - tensor_.entry.begin) / width;
    const int64_t window = std::min(elements, kSaveWindowBytes / width);
    bytes_.resize(static_cast<size_t>(window * width));
    for (int64_t begin = 0; begin < elements; begin += window) {
      CADRE_RETURN_IF_ERROR(WriteWindow(begin, std::min(elements, begin + window)));
    }
    return absl::OkStatus();
  }

 private:
  absl::Status WriteWindow(int64_t begin, int64_t end) {
    const size_t width = SizeOf(dtype_);
    covered_.assign(static_cast<size_t>(end - begin), 0);
    for (const Share& share : tensor_.shares) {
      const ParamPiece& piece = *share.piece;
      const ElementWindow window{piece.begin, piece.begin + piece.values.numel(), begin, end};
      ForEachStoredRun(*share.source, share.local, window, [&](const ParamRun& run) {
        const auto at = static_cast<size_t>(run.stored - begin);
        ConvertElements({.from = piece.values.dtype(),
                         .to = dtype_,
                         .count = run.count,
                         .from_stride = run.local_stride,
                         .to_stride = run.stored_stride},
                        piece.values.raw() + static_cast<size_t>(run.local - piece.begin) *
                                                 SizeOf(piece.values.dtype()),
                        bytes_.data() + at * width);
        for (int64_t i = 0; i < run.count; ++i) {
          covered_[at + static_cast<size_t>(i * run.stored_stride)] = 1;
        }
      });
    }
    return WriteCovered(begin);
  }

  // What other ranks fill between this rank's elements is left alone.
  absl::Status WriteCovered(int64_t begin) {
    const size_t width = SizeOf(dtype_);
    auto at = covered_.begin();
    while ((at = std::find(at, covered_.end(), 1)) != covered_.end()) {
      const auto stop = std::find(at, covered_.end(), 0);
      const auto first = static_cast<size_t>(at - covered_.begin());
      CADRE_RETURN_IF_ERROR(file_.WriteAt(
          offset_ + (begin + static_cast<int64_t>(first)) * static_cast<int64_t>(width),
          View(bytes_.data() + first * width, static_cast<size_t>(stop - at) * width)));
      at = stop;
    }
    return absl::OkStatus();
  }

  const PlannedTensor& tensor_;
  const InPlaceFile& file_;
  const int64_t offset_;  // of the tensor in the file
  const DType dtype_;
  std::vector<std::byte> bytes_;
  std::vector<char> covered_;  // elements of the window that this rank has
};

using Shards = std::vector<SafetensorsShard>;

std::string Temporary(const TensorFiles& files, const SafetensorsShard& shard) {
  return fmt::format("{}/.writing-{}", files.folder, shard.name);
}

absl::Status CreateFiles(const TensorFiles& files, const Shards& shards) {
  for (const SafetensorsShard& shard : shards) {
    CADRE_ASSIGN_OR_RETURN(InPlaceFile file,
                           InPlaceFile::Create(Temporary(files, shard), shard.bytes()));
    CADRE_RETURN_IF_ERROR(file.WriteAt(0, shard.header));
    CADRE_RETURN_IF_ERROR(file.Sync());
  }
  return absl::OkStatus();
}

absl::Status WriteShard(const TensorFiles& files, const SafetensorsShard& shard, const Plan& plan,
                        bool writes_carried) {
  auto mine = [&](const PlannedTensor& tensor) {
    return tensor.carried != nullptr ? writes_carried : !tensor.shares.empty();
  };
  if (std::ranges::none_of(shard.entries, [&](const auto& e) { return mine(plan.at(e.name)); })) {
    return absl::OkStatus();
  }
  CADRE_ASSIGN_OR_RETURN(InPlaceFile file, InPlaceFile::Open(Temporary(files, shard)));
  for (const SafetensorsEntry& entry : shard.entries) {
    PlannedTensor tensor = plan.at(entry.name);
    if (!mine(tensor)) continue;
    tensor.entry = entry;  // with its place
    const auto offset = static_cast<int64_t>(shard.header.size() + entry.begin);
    if (tensor.carried != nullptr) {
      const std::vector<std::byte>& bytes = tensor.carried->bytes;
      CADRE_RETURN_IF_ERROR(file.WriteAt(offset, View(bytes.data(), bytes.size())));
    } else {
      CADRE_RETURN_IF_ERROR(TensorWriter(tensor, file, offset).Write());
    }
  }
  return file.Sync();
}

absl::Status NameFiles(const TensorFiles& files, const Shards& shards) {
  namespace fs = std::filesystem;
  for (const SafetensorsShard& shard : shards) {
    const std::string path = fmt::format("{}/{}", files.folder, shard.name);
    std::error_code error;
    fs::rename(Temporary(files, shard), path, error);
    if (error) return ErrnoError(path, "cannot rename the finished file to it", error.value());
  }
  if (shards.size() > 1) {
    CADRE_RETURN_IF_ERROR(
        WriteFileAtomic(fmt::format("{}/{}", files.folder, SafetensorsIndexName(files.stem)),
                        SafetensorsIndex(shards)));
  }
  return SyncFolder(files.folder);
}

absl::Status WriteAndName(const TensorFiles& files, const Shards& shards, const Plan& plan,
                          Communicator* group) {
  const bool first = GroupRank(group) == 0;
  absl::Status status = first ? CreateFiles(files, shards) : absl::OkStatus();
  CADRE_RETURN_IF_ERROR(AgreeIn(group, status, {"files to save into"}));
  for (const SafetensorsShard& shard : shards) {
    if (status.ok()) status = WriteShard(files, shard, plan, first);
  }
  CADRE_RETURN_IF_ERROR(AgreeIn(group, status, {"tensors saved"}));
  if (first) status = NameFiles(files, shards);
  return AgreeIn(group, status, {"files named"});
}

}  // namespace

absl::StatusOr<std::vector<std::string>> SaveTensors(const ParameterStore& store,
                                                     std::span<const ParamPiece> pieces,
                                                     const TensorFiles& files,
                                                     Communicator* group) {
  // The same on every rank, and so are its errors.
  CADRE_ASSIGN_OR_RETURN(const Plan plan, WholePlan(store, pieces, files, group));
  std::vector<SafetensorsEntry> entries;
  for (const auto& [name, tensor] : plan) entries.push_back(tensor.entry);
  CADRE_ASSIGN_OR_RETURN(
      const Shards shards,
      PlanSafetensorsShards(files.stem, std::move(entries), files.metadata, files.max_shard_bytes));
  const absl::Status status = WriteAndName(files, shards, plan, group);
  if (!status.ok()) {
    std::error_code ignored;
    for (const SafetensorsShard& shard : shards) {
      if (GroupRank(group) == 0) std::filesystem::remove(Temporary(files, shard), ignored);
    }
    return status;
  }
  std::vector<std::string> names;
  for (const SafetensorsShard& shard : shards) names.push_back(shard.name);
  if (shards.size() > 1) names.push_back(SafetensorsIndexName(files.stem));
  return names;
}

}  // namespace cadre
