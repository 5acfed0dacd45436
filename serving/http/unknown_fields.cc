#include "serving/http/unknown_fields.h"

#include <spdlog/logger.h>

#include <algorithm>
#include <cctype>
#include <string_view>

namespace cadre {
namespace {

bool IsPlain(std::string_view name) {
  return !name.empty() && std::ranges::all_of(name, [](unsigned char c) {
    return std::isalnum(c) || c == '_' || c == '.' || c == '-';
  });
}

}  // namespace

void UnknownFields::Log(const std::vector<std::string>& names) {
  constexpr size_t kMaxTold = 1000;
  if (log_ == nullptr) return;
  for (const std::string& name : names) {
    std::lock_guard lock(mutex_);
    if (told_.size() >= kMaxTold || name.size() > 100) continue;
    const bool plain = IsPlain(name);
    if (!told_.insert(plain ? name : "").second) continue;
    if (plain) {
      log_->info("a request has the unknown field '{}'; it is ignored", name);
    } else {
      log_->info(
          "a request has an unknown field whose name is not of [A-Za-z0-9_.-]; it is ignored");
    }
  }
}

}  // namespace cadre
