#include "training/manifest.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string_view>
#include <vector>

#include <xxhash.h>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "parallel/agree.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

constexpr std::string_view kName = "manifest.json";
constexpr int64_t kMaxBytes = int64_t{64} << 20;
constexpr std::string_view kFormat = "cadre-checkpoint";

std::string Hex(uint64_t value) { return fmt::format("{:016x}", value); }

// Read piece by piece: a mapping of whole files would count in the run's memory.
absl::StatusOr<ManifestFile> Describe(const std::string& path) {
  constexpr size_t kPiece = size_t{1} << 20;
  std::ifstream file(path, std::ios::binary);
  if (!file) return NotFound("{}: cannot be opened", path);
  std::unique_ptr<XXH3_state_t, decltype(&XXH3_freeState)> hash(XXH3_createState(),
                                                                &XXH3_freeState);
  XXH3_64bits_reset(hash.get());
  std::vector<char> piece(kPiece);
  ManifestFile described;
  do {
    file.read(piece.data(), static_cast<std::streamsize>(kPiece));
    XXH3_64bits_update(hash.get(), piece.data(), static_cast<size_t>(file.gcount()));
    described.size += file.gcount();
  } while (file);
  if (!file.eof()) return DataLoss("{}: cannot be read", path);
  described.checksum = XXH3_64bits_digest(hash.get());
  return described;
}

Json FileJson(const ManifestFile& file) {
  return {{"size", file.size}, {"xxh3", Hex(file.checksum)}};
}

Json ToJson(const Manifest& manifest) {
  const CheckpointState& s = manifest.state;
  Json files = Json::object();
  for (const auto& [name, file] : manifest.files) {
    files[name] = FileJson(file);
  }
  return {{"format", kFormat},
          {"format_version", manifest.format_version},
          {"step", s.step},
          {"weight_version", s.weight_version},
          {"optimizer", {{"updates", s.updates}}},
          {"data", {{"cursor", s.step}, {"seed", s.data_seed}, {"tokens", s.tokens}}},
          {"rng", {{"seed", s.seed}}},
          {"guard", {{"norms", s.guard.norms}, {"skipped_in_row", s.guard.skipped_in_row}}},
          {"config", s.config},
          {"model_config", s.model_config},
          {"files", files}};
}

std::string Checksum(const Json& json) {
  std::string text = json.dump();
  return Hex(XXH3_64bits(text.data(), text.size()));
}

uint64_t ParseHex(const std::string& text) {
  uint64_t value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, 16);
  if (error != std::errc() || end != text.data() + text.size() || text.size() != 16) {
    throw std::runtime_error(fmt::format("checksum {}", text));
  }
  return value;
}

// Throws as FromJson.
ManifestFile ParseFile(const Json& file) {
  return {.size = file.at("size").get<int64_t>(),
          .checksum = ParseHex(file.at("xxh3").get<std::string>())};
}

bool StaysInside(const std::string& name) {
  fs::path path(name);
  if (name.empty() || path.is_absolute()) return false;
  return std::none_of(path.begin(), path.end(), [](const fs::path& part) {
    return part == ".." || part == "." || part.empty();
  });
}

// Throws what nlohmann throws where a field is missing or of another type.
Manifest FromJson(const Json& json) {
  Manifest manifest{.format_version = json.at("format_version").get<int64_t>()};
  CheckpointState& s = manifest.state;
  s.step = json.at("step").get<int64_t>();
  s.weight_version = json.at("weight_version").get<uint64_t>();
  s.updates = json.at("optimizer").at("updates").get<int64_t>();
  s.data_seed = json.at("data").at("seed").get<uint64_t>();
  s.tokens = json.at("data").at("tokens").get<int64_t>();
  s.seed = json.at("rng").at("seed").get<uint64_t>();
  s.guard.norms = json.at("guard").at("norms").get<std::vector<double>>();
  s.guard.skipped_in_row = json.at("guard").at("skipped_in_row").get<int32_t>();
  s.config = json.at("config").get<std::string>();
  s.model_config = json.at("model_config").get<std::string>();
  for (const auto& [name, file] : json.at("files").items()) {
    if (!StaysInside(name)) throw std::runtime_error(fmt::format("file name {}", name));
    manifest.files[name] = ParseFile(file);
  }
  return manifest;
}

// Every file but the manifest, sorted.
absl::StatusOr<std::vector<std::string>> FilesIn(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code error;
  fs::recursive_directory_iterator entries(folder, error), end;
  while (!error && entries != end) {
    std::string name = entries->path().lexically_relative(folder).generic_string();
    if (entries->is_regular_file(error) && name != kName) names.push_back(std::move(name));
    if (!error) entries.increment(error);
  }
  if (error) return ErrnoError(folder, "cannot list", error.value());
  std::sort(names.begin(), names.end());
  return names;
}

absl::Status VerifyFile(const std::string& path, const ManifestFile& expected) {
  const auto actual = Describe(path);
  if (absl::IsNotFound(actual.status())) return DataLoss("{}: missing", path);
  CADRE_RETURN_IF_ERROR(actual.status());
  if (actual->size != expected.size) {
    return DataLoss("{}: {} bytes, the manifest says {}", path, actual->size, expected.size);
  }
  if (actual->checksum != expected.checksum) {
    return DataLoss("{}: checksum {}, the manifest says {}", path, Hex(actual->checksum),
                    Hex(expected.checksum));
  }
  return absl::OkStatus();
}

// What each rank hands in, as an array by rank.
absl::StatusOr<Json> GatherJson(Communicator* group, Json mine) {
  if (group == nullptr) return Json::array({std::move(mine)});
  CADRE_ASSIGN_OR_RETURN(auto texts, GatherText(*group, mine.dump(), {"checkpoint's files"}));
  Json all = Json::array();
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    all.push_back(Json::parse(texts[rank], nullptr, /*allow_exceptions=*/false));
    if (!all.back().is_structured()) {
      return Internal("rank {}: its list of a checkpoint's files is no JSON", rank);
    }
  }
  return all;
}

}  // namespace

absl::StatusOr<Manifest> DescribeFolder(const std::string& folder, CheckpointState state,
                                        Communicator* group) {
  auto names = GroupRank(group) == 0 ? FilesIn(folder) : std::vector<std::string>();
  CADRE_RETURN_IF_ERROR(AgreeIn(group, names.status(), {"files of a checkpoint"}));
  CADRE_ASSIGN_OR_RETURN(const Json all, GatherJson(group, Json(*names)));
  // Rank 0's list is everyone's: a network folder may not show its newest files everywhere at once.
  std::vector<std::string> listed;
  for (const Json& name : all[0]) listed.push_back(name.get<std::string>());
  absl::Status status;
  Json mine = Json::object();
  for (auto i = static_cast<size_t>(GroupRank(group)); i < listed.size();
       i += static_cast<size_t>(GroupSize(group))) {
    auto described = Describe(folder + "/" + listed[i]);
    if (!described.ok() && status.ok()) status = described.status();
    if (described.ok()) mine[listed[i]] = FileJson(*described);
  }
  CADRE_RETURN_IF_ERROR(AgreeIn(group, status, {"checksums"}));
  CADRE_ASSIGN_OR_RETURN(const Json parts, GatherJson(group, std::move(mine)));
  Manifest manifest{.state = std::move(state)};
  for (const Json& part : parts) {
    for (const auto& [name, file] : part.items()) manifest.files[name] = ParseFile(file);
  }
  return manifest;
}

absl::Status WriteManifest(const std::string& folder, const Manifest& manifest) {
  Json json = ToJson(manifest);
  json["manifest_xxh3"] = Checksum(json);
  return WriteFileAtomic(fmt::format("{}/{}", folder, kName), json.dump(2) + "\n");
}

absl::StatusOr<Manifest> ReadManifest(const std::string& folder) {
  std::string path = fmt::format("{}/{}", folder, kName);
  CADRE_ASSIGN_OR_RETURN(std::string text, ReadFile(path, kMaxBytes));
  // A hostile manifest could nest deeply; this one has three levels.
  int deepest = 0;
  auto bound = [&deepest](int depth, Json::parse_event_t, Json&) {
    deepest = std::max(deepest, depth);
    return depth <= 16;
  };
  try {
    Json json = Json::parse(text, bound);
    if (deepest > 16) return DataLoss("{}: nested deeper than 16 levels", path);
    if (json.at("format").get<std::string>() != kFormat) {
      return DataLoss("{}: format is {}, not {}", path, json.at("format").dump(), kFormat);
    }
    int64_t version = json.at("format_version").get<int64_t>();
    if (version != Manifest::kFormatVersion) {
      return Unimplemented("{}: format_version {}; this program reads {} alone", path, version,
                           Manifest::kFormatVersion);
    }
    std::string stated = json.at("manifest_xxh3").get<std::string>();
    json.erase("manifest_xxh3");
    if (stated != Checksum(json)) return DataLoss("{}: its checksum does not match", path);
    return FromJson(json);
  } catch (const std::exception& failure) {
    return DataLoss("{}: torn or altered: {}", path, failure.what());
  }
}

absl::Status VerifyFiles(const std::string& folder, const Manifest& manifest, Communicator* group) {
  absl::Status mine;
  int turn = 0;
  for (const auto& [name, expected] : manifest.files) {
    if (turn++ % GroupSize(group) != GroupRank(group)) continue;
    mine = VerifyFile(fmt::format("{}/{}", folder, name), expected);
    if (!mine.ok()) break;
  }
  return AgreeIn(group, mine, {"checksums"});
}

}  // namespace cadre
