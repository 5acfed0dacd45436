#include "cluster/host_list.h"

#include <charconv>
#include <string_view>

namespace cadre {
namespace {

constexpr size_t kMaxHosts = 65536;
constexpr int kMaxBrackets = 4;
constexpr size_t kMaxDigits = 9;

// Cuts at commas outside brackets.
std::vector<std::string_view> Split(std::string_view list) {
  std::vector<std::string_view> parts;
  size_t begin = 0;
  int depth = 0;
  for (size_t i = 0; i <= list.size(); ++i) {
    if (i < list.size() && list[i] == '[') ++depth;
    if (i < list.size() && list[i] == ']') --depth;
    if (i == list.size() || (list[i] == ',' && depth == 0)) {
      parts.push_back(list.substr(begin, i - begin));
      begin = i + 1;
    }
  }
  return parts;
}

bool ParseNumber(std::string_view text, int* value) {
  const char* end = text.data() + text.size();
  return !text.empty() && text.size() <= kMaxDigits && text[0] >= '0' && text[0] <= '9' &&
         std::from_chars(text.data(), end, *value).ptr == end;
}

absl::Status Expand(std::string_view host, int brackets, const std::string& list,
                    std::vector<std::string>* hosts) {
  const auto wrong = [&] { return InvalidArgument("host list {}: not understood", list); };
  const size_t open = host.find('['), close = host.find(']');
  if (open == host.npos && close == host.npos) {
    if (host.empty()) return wrong();
    if (hosts->size() == kMaxHosts) {
      return InvalidArgument("host list {}: more than {} hosts", list.substr(0, 64), kMaxHosts);
    }
    hosts->emplace_back(host);
    return absl::OkStatus();
  }
  if (open == host.npos || close == host.npos || close < open || brackets == kMaxBrackets) {
    return wrong();
  }
  for (const std::string_view range : Split(host.substr(open + 1, close - open - 1))) {
    const size_t dash = range.find('-');
    const std::string_view from = range.substr(0, dash);
    const std::string_view to = dash == range.npos ? from : range.substr(dash + 1);
    int first = 0, last = 0;
    if (!ParseNumber(from, &first) || !ParseNumber(to, &last) || last < first) return wrong();
    for (int i = first; i <= last; ++i) {
      // Leading zeros count: 08-10 is 08, 09, 10.
      const std::string one =
          fmt::format("{}{:0{}}{}", host.substr(0, open), i, from.size(), host.substr(close + 1));
      CADRE_RETURN_IF_ERROR(Expand(one, brackets + 1, list, hosts));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<std::string>> ExpandHostList(const std::string& list) {
  std::vector<std::string> hosts;
  for (const std::string_view host : Split(list)) {
    CADRE_RETURN_IF_ERROR(Expand(host, 0, list, &hosts));
  }
  return hosts;
}

absl::StatusOr<std::vector<int>> ExpandTaskCounts(const std::string& list) {
  std::vector<int> counts;
  for (const std::string_view part : Split(list)) {
    const size_t open = part.find("(x");
    int count = 0, times = 1;
    bool good = ParseNumber(part.substr(0, open), &count);
    if (open != part.npos) {
      good = good && part.ends_with(')') &&
             ParseNumber(part.substr(open + 2, part.size() - open - 3), &times);
    }
    if (!good || counts.size() + static_cast<size_t>(times) > kMaxHosts) {
      return InvalidArgument("tasks per node {}: not understood", list);
    }
    counts.insert(counts.end(), static_cast<size_t>(times), count);
  }
  return counts;
}

}  // namespace cadre
