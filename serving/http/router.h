// Which request goes where. Default deny: a path that is not in the table is 404, a method that its
// path does not have is 405, and every route but the public ones needs a key where keys are set.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

enum class Endpoint {
  kHealth,
  kReady,
  kMetrics,
  kVersion,
  kModels,
  kModel,
  kChat,
  kCompletions,
  kEmbeddings,
  kMessages,
  kCountTokens,
  kResponses,
  kTokenize,
  kDetokenize,
  kSleep,
  kWake,
  kIsSleeping,
  kPage,
};

// Who may ask, and on which bind (Bind).
enum class Access {
  kPublic,   // anyone, on both
  kPage,     // anyone, on the clients' bind
  kClient,   // with a client's key, on the clients' bind
  kMonitor,  // with the bind's key; on the administration's bind, or the clients' where that is all
  kAdmin,    // with an administrator's key, on the administration's bind alone
};

// What a listening address is for.
enum class Bind {
  kAll,      // the only one
  kClients,  // there is one for administration beside it
  kAdmin,
};

// A path may end in a name in braces, which stands for any text that is not empty.
struct Route {
  std::string_view method, path;
  Endpoint endpoint;
  Access access;
};
// All there are.
std::span<const Route> Routes();

struct RouteMatch {
  int status = 404;  // 200: found
  Endpoint endpoint = Endpoint::kHealth;
  Access access = Access::kClient;
  std::string_view allowed_method;   // with 405
  std::string_view label = "other";  // the route's name in metrics
};

// `target` as in the request line; a query string is ignored. Paths match exactly: nothing is
// decoded or normalized. HEAD is a GET whose answer is not written.
RouteMatch FindRoute(std::string_view method, std::string_view target, Bind bind);

// The header lines that let a browser's page of `origin` (the request's Origin, or empty) read the
// answer. Any origin may without `allowed`, but then without credentials: there are no cookies
// here, and a proxy that has some must list who may use them.
std::string CorsHeaders(const std::vector<std::string>& allowed, std::string_view origin);

}  // namespace cadre
