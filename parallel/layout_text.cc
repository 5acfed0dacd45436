#include "parallel/layout_text.h"

#include <utility>

#include <fmt/core.h>

namespace cadre {

std::string LayoutText(const Layout& layout, bool experts) {
  std::string text = fmt::format("{} rank{}", layout.world(), layout.world() == 1 ? "" : "s");
  const std::pair<const char*, int> sizes[] = {{"tp", layout.tp}, {"cp", layout.cp},
                                               {"dp", layout.dp}, {"pp", layout.pp},
                                               {"ep", layout.ep}, {"etp", layout.etp}};
  for (const auto& [name, size] : sizes) {
    const bool of_experts = name[0] == 'e';
    if (size > 1 && (experts || !of_experts)) text += fmt::format(", {} {}", name, size);
  }
  if (layout.dp > 1) text += fmt::format(", zero_stage {}", layout.zero_stage);
  return text;
}

}  // namespace cadre
