#include "cluster/node_range.h"

#include <charconv>
#include <optional>

#include "cluster/gathering.h"

namespace cadre {
namespace {

std::optional<int> Count(const std::string& text) {
  int count = 0;
  const char* end = text.data() + text.size();
  const auto parsed = std::from_chars(text.data(), end, count);
  const bool whole = parsed.ec == std::errc() && parsed.ptr == end;
  if (!whole || count < 1 || count > Gathering::kMaxMembers) return std::nullopt;
  return count;
}

}  // namespace

absl::StatusOr<NodeRange> ParseNodeRange(const std::string& name, const std::string& text) {
  const size_t colon = text.find(':');
  const std::optional<int> min = Count(text.substr(0, colon));
  const std::optional<int> max = colon == text.npos ? min : Count(text.substr(colon + 1));
  if (!min || !max) {
    return InvalidArgument("{} {}: N or MIN:MAX, each 1 to {}", name, text, Gathering::kMaxMembers);
  }
  if (*min > *max) return InvalidArgument("{} {}: MIN is more than MAX", name, text);
  return NodeRange{.min = *min, .max = *max};
}

}  // namespace cadre
