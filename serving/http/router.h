// Which request goes where. Default deny: a path that is not in the table is 404, a method that its
// path does not have is 405, and every route but the public ones needs a key where keys are set.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace cadre {

enum class Endpoint { kHealth, kReady, kMetrics, kModels, kChat, kCompletions };

struct RouteMatch {
  int status = 404;  // 200: found
  Endpoint endpoint = Endpoint::kHealth;
  bool is_public = false;
  std::string_view allowed_method;  // with 405
  std::string_view label;           // the route's name in metrics
};

// `target` as in the request line; a query string is ignored. Paths match exactly: nothing is
// decoded or normalized.
RouteMatch FindRoute(std::string_view method, std::string_view target);

// The header lines that let a browser's page of `origin` (the request's Origin, or empty) read the
// answer. Any origin may without `allowed`, but then without credentials: there are no cookies
// here, and a proxy that has some must list who may use them.
std::string CorsHeaders(const std::vector<std::string>& allowed, std::string_view origin);

// Whether `authorization` ("Bearer KEY") or `api_key` (X-Api-Key) holds one of the keys; true
// without keys. Takes the same time wherever a wrong key differs.
bool KeyAccepted(const std::vector<std::string>& keys, std::string_view authorization,
                 std::string_view api_key);

}  // namespace cadre
