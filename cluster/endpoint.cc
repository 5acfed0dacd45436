#include <charconv>

#include "cluster/rendezvous_server.h"

namespace cadre {

std::string EndpointOf(const std::string& host, int port) {
  return host.find(':') == std::string::npos ? fmt::format("{}:{}", host, port)
                                             : fmt::format("[{}]:{}", host, port);
}

absl::StatusOr<HostPort> ParseEndpoint(const std::string& name, const std::string& text) {
  HostPort endpoint;
  std::string port;
  if (text.starts_with('[')) {
    const size_t end = text.find(']');
    if (end == std::string::npos) return InvalidArgument("{} {}: a \"]\" is missing", name, text);
    endpoint.host = text.substr(1, end - 1);
    port = text.substr(end + 1);
  } else {
    const size_t colon = text.find(':');
    const bool several = colon != std::string::npos && text.find(':', colon + 1) != text.npos;
    endpoint.host = several ? text : text.substr(0, colon);
    if (!several && colon != text.npos) port = text.substr(colon);
  }
  if (endpoint.host.empty()) return InvalidArgument("{} {}: HOST:PORT expected", name, text);
  if (port.empty()) return endpoint;
  const char* end = port.data() + port.size();
  if (port.size() < 2 || port[0] != ':' ||
      std::from_chars(port.data() + 1, end, endpoint.port).ptr != end || endpoint.port < 1 ||
      endpoint.port > 65535) {
    return InvalidArgument("{} {}: a port is 1 to 65535", name, text);
  }
  return endpoint;
}

bool IsLoopback(const std::string& host) {
  return host == "localhost" || host == "::1" || host.starts_with("127.");
}

}  // namespace cadre
