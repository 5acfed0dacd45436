#include "serving/http/router.h"

#include <fmt/core.h>

#include <algorithm>

namespace cadre {

RouteMatch FindRoute(std::string_view method, std::string_view target) {
  struct Route {
    std::string_view method, path;
    Endpoint endpoint;
    bool is_public;
  };
  static constexpr Route kRoutes[] = {
      {"GET", "/health", Endpoint::kHealth, true},
      {"GET", "/ready", Endpoint::kReady, true},
      {"GET", "/metrics", Endpoint::kMetrics, false},
      {"GET", "/v1/models", Endpoint::kModels, false},
      {"POST", "/v1/chat/completions", Endpoint::kChat, false},
      {"POST", "/v1/completions", Endpoint::kCompletions, false},
  };
  std::string_view path = target.substr(0, target.find('?'));
  for (const Route& route : kRoutes) {
    if (path != route.path) continue;
    bool found = method == route.method;
    return {found ? 200 : 405, route.endpoint, route.is_public, route.method, route.path};
  }
  return {.label = "other"};
}

std::string CorsHeaders(const std::vector<std::string>& allowed, std::string_view origin) {
  const bool listed = std::find(allowed.begin(), allowed.end(), origin) != allowed.end();
  if (origin.empty() || (!listed && !allowed.empty())) return "";
  return fmt::format("Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n{}", origin,
                     listed ? "Access-Control-Allow-Credentials: true\r\n" : "");
}

bool KeyAccepted(const std::vector<std::string>& keys, std::string_view authorization,
                 std::string_view api_key) {
  if (keys.empty()) return true;
  constexpr std::string_view kBearer = "Bearer ";
  std::string_view given = api_key;
  if (authorization.starts_with(kBearer)) given = authorization.substr(kBearer.size());
  bool accepted = false;
  for (const std::string& key : keys) {
    unsigned difference = key.size() != given.size();
    for (size_t i = 0; i < given.size(); ++i) {
      difference |= static_cast<unsigned char>(given[i]) ^
                    static_cast<unsigned char>(key.empty() ? 1 : key[i % key.size()]);
    }
    accepted |= difference == 0 && !given.empty();
  }
  return accepted;
}

}  // namespace cadre
