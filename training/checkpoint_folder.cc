#include "training/checkpoint_folder.h"

#include <fcntl.h>
#include <stdio.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <random>
#include <string_view>

#include <absl/strings/str_join.h>
#include <absl/strings/str_split.h>

#include "core/file.h"
#include "parallel/agree.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "step-";
constexpr std::string_view kWriting = ".writing-";
constexpr std::string_view kRemoving = ".removing-";

std::optional<int64_t> StepOf(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  int64_t step = 0;
  auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), step);
  if (error != std::errc() || end != name.data() + name.size() || step < 0) return std::nullopt;
  return step;
}

absl::StatusOr<std::vector<std::string>> NamesIn(const std::string& root) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator entries(root, error), end;
  if (error == std::errc::no_such_file_or_directory) return names;
  while (!error && entries != end) {
    names.push_back(entries->path().filename().string());
    entries.increment(error);
  }
  if (error) return ErrnoError(root, "cannot list", error.value());
  return names;
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoError(from, fmt::format("cannot rename to {}", to), errno);
  }
  return absl::OkStatus();
}

absl::Status PointLatest(const std::string& root, int64_t step) {
  std::string temporary = root + "/.latest";
  std::error_code error;
  fs::remove(temporary, error);
  fs::create_directory_symlink(CheckpointName(step), temporary, error);
  if (error) return ErrnoError(temporary, "cannot link", error.value());
  return Rename(temporary, root + "/latest");
}

// Newest first. Rank 0's list is everyone's: a network folder may not show its newest names
// everywhere at once.
absl::StatusOr<std::vector<std::string>> Candidates(const std::string& root, Communicator* group) {
  auto entries = GroupRank(group) == 0 ? ListCheckpoints(root) : std::vector<CheckpointEntry>();
  CADRE_RETURN_IF_ERROR(AgreeIn(group, entries.status(), {"checkpoints"}));
  std::vector<std::string> names;
  for (const CheckpointEntry& entry : *entries) {
    names.push_back(fs::path(entry.path).filename().string());
  }
  if (group != nullptr) {
    // No name has a slash.
    CADRE_ASSIGN_OR_RETURN(const auto all,
                           GatherText(*group, absl::StrJoin(names, "/"), {"checkpoints"}));
    names = absl::StrSplit(all[0], '/', absl::SkipEmpty());
  }
  for (std::string& name : names) name = root + "/" + name;
  return names;
}

// Under another name first: a half-removed folder must not look like a checkpoint.
absl::Status Remove(const std::string& root, const std::string& name) {
  std::string doomed = fmt::format("{}/{}{}", root, kRemoving, name);
  DiscardCheckpoint(doomed);
  CADRE_RETURN_IF_ERROR(Rename(root + "/" + name, doomed));
  DiscardCheckpoint(doomed);
  return absl::OkStatus();
}

// Where a checkpoint that is set aside goes: beside those of its name that were before it.
std::string FreeAside(const std::string& root, const std::string& name) {
  std::string aside = fmt::format("{}/{}.abandoned", root, name);
  std::error_code error;
  for (int number = 2; fs::exists(fs::symlink_status(aside, error)); ++number) {
    aside = fmt::format("{}/{}.abandoned-{}", root, name, number);
  }
  return aside;
}

}  // namespace

std::string CheckpointName(int64_t step) { return fmt::format("{}{:06}", kPrefix, step); }

absl::StatusOr<std::vector<CheckpointEntry>> ListCheckpoints(const std::string& root) {
  CADRE_ASSIGN_OR_RETURN(std::vector<std::string> names, NamesIn(root));
  std::vector<CheckpointEntry> entries;
  for (const std::string& name : names) {
    if (auto step = StepOf(name)) entries.push_back({*step, root + "/" + name});
  }
  std::sort(entries.begin(), entries.end(),
            [](const auto& a, const auto& b) { return a.step > b.step; });
  return entries;
}

absl::StatusOr<std::optional<FoundCheckpoint>> FindGoodCheckpoint(
    const std::string& root, const std::function<void(const std::string&)>& warn,
    Communicator* group) {
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> paths, Candidates(root, group));
  for (const std::string& path : paths) {
    auto manifest = ReadManifest(path);
    absl::Status status = AgreeIn(group, manifest.status(), {"manifest"});
    if (status.ok()) status = VerifyFiles(path, *manifest, group);
    if (status.ok()) return FoundCheckpoint{path, *std::move(manifest)};
    // Ranks that have lost one another know nothing of the checkpoint.
    CADRE_RETURN_IF_ERROR(AgreeIn(group, absl::OkStatus(), {"checkpoint passed over"}));
    warn(Message(status));
  }
  return std::nullopt;
}

absl::StatusOr<std::string> StartCheckpoint(const std::string& root, int64_t step) {
  std::random_device random;
  std::string folder =
      fmt::format("{}/{}{}-{:08x}{:08x}", root, kWriting, CheckpointName(step), random(), random());
  std::error_code error;
  fs::create_directories(folder, error);
  if (error) return ErrnoError(folder, "cannot create", error.value());
  return folder;
}

absl::Status PublishCheckpoint(const std::string& root, const std::string& written, int64_t step) {
  std::string target = root + "/" + CheckpointName(step);
  std::error_code error;
  if (fs::exists(target, error)) {
    if (::renameat2(AT_FDCWD, written.c_str(), AT_FDCWD, target.c_str(), RENAME_EXCHANGE) != 0) {
      return ErrnoError(target, "cannot exchange", errno);
    }
    DiscardCheckpoint(written);
  } else {
    CADRE_RETURN_IF_ERROR(Rename(written, target));
  }
  CADRE_RETURN_IF_ERROR(SyncFolder(root));
  CADRE_RETURN_IF_ERROR(PointLatest(root, step));
  return SyncFolder(root);
}

void DiscardCheckpoint(const std::string& written) {
  std::error_code error;
  fs::remove_all(written, error);
}

absl::Status PruneCheckpoints(const std::string& root, int keep, int64_t newest_step) {
  if (keep == 0) return absl::OkStatus();
  CADRE_ASSIGN_OR_RETURN(std::vector<CheckpointEntry> entries, ListCheckpoints(root));
  int kept = 0;
  for (const CheckpointEntry& entry : entries) {
    if (entry.step > newest_step || ++kept <= keep) continue;
    CADRE_RETURN_IF_ERROR(Remove(root, fs::path(entry.path).filename().string()));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<std::string>> AbandonLaterCheckpoints(const std::string& root,
                                                                 int64_t step) {
  CADRE_ASSIGN_OR_RETURN(std::vector<std::string> names, NamesIn(root));
  std::vector<std::string> abandoned;
  for (const std::string& name : names) {
    if (name.starts_with(kWriting) || name.starts_with(kRemoving)) {
      DiscardCheckpoint(root + "/" + name);
    }
    auto found = StepOf(name);
    if (!found || *found <= step) continue;
    CADRE_RETURN_IF_ERROR(Rename(root + "/" + name, FreeAside(root, name)));
    abandoned.push_back(name);
  }
  if (abandoned.empty()) return abandoned;
  std::error_code error;
  fs::remove(root + "/latest", error);
  if (fs::exists(root + "/" + CheckpointName(step), error)) {
    CADRE_RETURN_IF_ERROR(PointLatest(root, step));
  }
  CADRE_RETURN_IF_ERROR(SyncFolder(root));
  return abandoned;
}

}  // namespace cadre
