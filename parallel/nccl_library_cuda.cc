#include "parallel/nccl_library_cuda.h"

#include <dlfcn.h>

#include <string>

namespace cadre {
namespace {

template <typename... Args>
absl::Status Refuse(fmt::format_string<Args...> format, Args&&... args) {
  return absl::FailedPreconditionError(fmt::format(format, std::forward<Args>(args)...));
}

// The system's own first, then the one that the build found.
absl::StatusOr<void*> OpenLibrary() {
  const std::string name = fmt::format("libnccl.so.{}", NCCL_MAJOR);
  const std::string built_with = CADRE_NCCL_LIBRARY;
  void* library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr && !built_with.empty()) {
    library = dlopen(built_with.c_str(), RTLD_NOW | RTLD_LOCAL);
  }
  if (library == nullptr) return Refuse("NCCL: {}", dlerror());
  return library;
}

}  // namespace

std::string NcclVersionText(int code) {
  return fmt::format("{}.{}.{}", code / 10000, code / 100 % 100, code % 100);
}

absl::StatusOr<NcclFunctions> LoadNccl() {
  CADRE_ASSIGN_OR_RETURN(void* const library, OpenLibrary());
  std::string missing;
  const auto find = [&](const char* name, auto* function) {
    *function = reinterpret_cast<std::remove_pointer_t<decltype(function)>>(dlsym(library, name));
    if (*function == nullptr) missing = name;
  };
  NcclFunctions nccl;
  find("ncclGetVersion", &nccl.get_version);
  find("ncclGetUniqueId", &nccl.get_unique_id);
  find("ncclCommInitRankConfig", &nccl.comm_init);
  find("ncclCommGetAsyncError", &nccl.comm_get_async_error);
  find("ncclCommFinalize", &nccl.comm_finalize);
  find("ncclCommDestroy", &nccl.comm_destroy);
  find("ncclCommAbort", &nccl.comm_abort);
  find("ncclGetErrorString", &nccl.get_error_string);
  find("ncclGetLastError", &nccl.get_last_error);
  find("ncclGroupStart", &nccl.group_start);
  find("ncclGroupEnd", &nccl.group_end);
  find("ncclAllReduce", &nccl.all_reduce);
  find("ncclReduceScatter", &nccl.reduce_scatter);
  find("ncclReduce", &nccl.reduce);
  find("ncclAllGather", &nccl.all_gather);
  find("ncclBroadcast", &nccl.broadcast);
  find("ncclSend", &nccl.send);
  find("ncclRecv", &nccl.receive);
  if (!missing.empty()) return Refuse("NCCL: its library has no {}", missing);
  int version = 0;
  if (nccl.get_version(&version) != ncclSuccess || version < NCCL_VERSION_CODE) {
    return Refuse("NCCL {} is older than the {} that this program was built with",
                  NcclVersionText(version), NcclVersionText(NCCL_VERSION_CODE));
  }
  return nccl;
}

}  // namespace cadre
