#include "training/shared_folder.h"

#include <filesystem>
#include <random>

#include "core/file.h"
#include "parallel/agree.h"
#include "parallel/groups.h"

namespace cadre {
namespace {

// A name that no file system has remembered the absence of.
std::string FreshName() {
  std::random_device random;
  return fmt::format(".shared-{:08x}{:08x}", random(), random());
}

}  // namespace

absl::Status CheckSharedFolder(Communicator* group, const std::string& folder) {
  if (group == nullptr) return absl::OkStatus();
  const bool first = GroupRank(group) == 0;
  const std::string mine = first ? folder + "/" + FreshName() : "";
  CADRE_RETURN_IF_ERROR(
      Agree(*group, first ? WriteFileAtomic(mine, "") : absl::OkStatus(), {"output folder"}));
  CADRE_ASSIGN_OR_RETURN(const auto all, GatherText(*group, mine, {"output folder"}));
  const std::string seen = folder + "/" + std::filesystem::path(all[0]).filename().string();
  std::error_code error;
  const absl::Status status =
      std::filesystem::exists(seen, error)
          ? absl::OkStatus()
          : InvalidArgument(
                "{}: what rank 0 wrote there is not seen here; all ranks need one shared folder",
                folder);
  const absl::Status agreed = Agree(*group, status, {"output folder"});
  if (first) std::filesystem::remove(mine, error);
  return agreed;
}

}  // namespace cadre
