#include "serving/http/router.h"

#include <fmt/core.h>

#include <algorithm>

namespace cadre {

namespace {

constexpr Route kRoutes[] = {
    {"GET", "/health", Endpoint::kHealth, Access::kPublic},
    {"GET", "/ready", Endpoint::kReady, Access::kPublic},
    {"GET", "/metrics", Endpoint::kMetrics, Access::kMonitor},
    {"GET", "/version", Endpoint::kVersion, Access::kClient},
    {"GET", "/v1/models", Endpoint::kModels, Access::kClient},
    {"GET", "/v1/models/{id}", Endpoint::kModel, Access::kClient},
    {"POST", "/v1/chat/completions", Endpoint::kChat, Access::kClient},
    {"POST", "/v1/completions", Endpoint::kCompletions, Access::kClient},
    {"POST", "/v1/embeddings", Endpoint::kEmbeddings, Access::kClient},
    {"POST", "/v1/messages", Endpoint::kMessages, Access::kClient},
    {"POST", "/v1/messages/count_tokens", Endpoint::kCountTokens, Access::kClient},
    {"POST", "/v1/responses", Endpoint::kResponses, Access::kClient},
    {"POST", "/tokenize", Endpoint::kTokenize, Access::kClient},
    {"POST", "/detokenize", Endpoint::kDetokenize, Access::kClient},
    {"GET", "/", Endpoint::kPage, Access::kPage},
    {"POST", "/sleep", Endpoint::kSleep, Access::kAdmin},
    {"POST", "/wake", Endpoint::kWake, Access::kAdmin},
    {"GET", "/is_sleeping", Endpoint::kIsSleeping, Access::kAdmin},
};

// A last part in braces stands for any text that is not empty.
bool Matches(std::string_view pattern, std::string_view path) {
  const size_t brace = pattern.find('{');
  if (brace == std::string_view::npos) return path == pattern;
  return path.size() > brace && path.substr(0, brace) == pattern.substr(0, brace);
}

bool Serves(Bind bind, Access access) {
  switch (access) {
    case Access::kPublic:
      return true;
    case Access::kPage:
    case Access::kClient:
      return bind != Bind::kAdmin;
    case Access::kMonitor:
      return bind != Bind::kClients;
    case Access::kAdmin:
      return bind == Bind::kAdmin;
  }
  return false;
}

}  // namespace

std::span<const Route> Routes() { return kRoutes; }

RouteMatch FindRoute(std::string_view method, std::string_view target, Bind bind) {
  std::string_view path = target.substr(0, target.find('?'));
  for (const Route& route : kRoutes) {
    if (!Matches(route.path, path) || !Serves(bind, route.access)) continue;
    const bool found = method == route.method || (method == "HEAD" && route.method == "GET");
    return {found ? 200 : 405, route.endpoint, route.access, route.method, route.path};
  }
  return {};
}

std::string CorsHeaders(const std::vector<std::string>& allowed, std::string_view origin) {
  const bool listed = std::find(allowed.begin(), allowed.end(), origin) != allowed.end();
  if (origin.empty() || (!listed && !allowed.empty())) return "";
  return fmt::format("Access-Control-Allow-Origin: {}\r\nVary: Origin\r\n{}", origin,
                     listed ? "Access-Control-Allow-Credentials: true\r\n" : "");
}

}  // namespace cadre
