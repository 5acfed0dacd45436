#include "parallel/agree.h"

#include <algorithm>
#include <charconv>
#include <cstring>

#include "core/host_allocator.h"

namespace cadre {
namespace {

constexpr int64_t kMaxBytes = int64_t{1} << 30;
constexpr size_t kMaxMessage = 4096;

}  // namespace

absl::StatusOr<std::vector<std::string>> GatherText(Communicator& group, const std::string& mine,
                                                    const OpLabel& label) {
  HostAllocator allocator;
  const auto ranks = static_cast<size_t>(group.size());
  const int64_t own = static_cast<int64_t>(mine.size());
  Tensor size = Tensor::Of<int64_t>(allocator, {1}, std::span(&own, 1));
  Tensor sizes = Tensor::Empty(allocator, {group.size()}, DType::kI64);
  CADRE_RETURN_IF_ERROR(group.AllGather(size, sizes, label)->Wait());
  int64_t total = 0;
  for (size_t rank = 0; rank < ranks; ++rank) {
    const int64_t bytes = sizes.data<int64_t>()[rank];
    if (bytes < 0 || bytes > kMaxBytes) {
      return InvalidArgument("{}: rank {} hands in {} bytes; at most {} are allowed",
                             ToString(label), rank, bytes, kMaxBytes);
    }
    total += bytes;
  }
  std::vector<std::string> texts(ranks);
  if (total == 0) return texts;
  Tensor input = Tensor::Empty(allocator, {own}, DType::kU8);
  std::memcpy(input.raw(), mine.data(), mine.size());
  Tensor output = Tensor::Empty(allocator, {total}, DType::kU8);
  CADRE_RETURN_IF_ERROR(group.AllGatherV(input, output, sizes.span<int64_t>(), label)->Wait());
  const char* at = reinterpret_cast<const char*>(output.raw());
  for (size_t rank = 0; rank < ranks; ++rank) {
    const auto bytes = static_cast<size_t>(sizes.data<int64_t>()[rank]);
    texts[rank].assign(at, bytes);
    at += bytes;
  }
  return texts;
}

absl::Status Agree(Communicator& group, const absl::Status& mine, const OpLabel& label) {
  std::string text;
  if (!mine.ok()) {
    text =
        fmt::format("{} {}", static_cast<int>(mine.code()), Message(mine).substr(0, kMaxMessage));
  }
  CADRE_ASSIGN_OR_RETURN(const std::vector<std::string> texts, GatherText(group, text, label));
  if (!mine.ok() && std::ranges::all_of(texts, [&](const auto& each) { return each == text; })) {
    return mine;
  }
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    const std::string& theirs = texts[rank];
    if (theirs.empty()) continue;
    int code = static_cast<int>(absl::StatusCode::kUnknown);
    const size_t space = std::min(theirs.find(' '), theirs.size());
    std::from_chars(theirs.data(), theirs.data() + space, code);
    const std::string message = theirs.substr(std::min(space + 1, theirs.size()));
    return absl::Status(static_cast<absl::StatusCode>(code),
                        fmt::format("rank {}: {}", rank, message));
  }
  return absl::OkStatus();
}

}  // namespace cadre
