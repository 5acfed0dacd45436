// The first byte chooses an endpoint, the rest is the JSON body that it gets. What is refused names
// a 4xx status; what is taken is within the server's bounds.
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "serving/http/api_endpoint.h"

namespace {

std::vector<const cadre::ApiEndpoint*> Endpoints() {
  std::vector<const cadre::ApiEndpoint*> found;
  for (int i = 0; i < 64; ++i) {
    const auto* endpoint = cadre::FindApiEndpoint(static_cast<cadre::Endpoint>(i));
    if (endpoint != nullptr) found.push_back(endpoint);
  }
  return found;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<const cadre::ApiEndpoint*> endpoints = Endpoints();
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  const cadre::SamplingDefaults defaults;
  const cadre::SchemaLimits limits;
  const cadre::SchemaContext context{.defaults = defaults,
                                     .limits = limits,
                                     .vocab_size = 1000,
                                     .max_context = 1000,
                                     .takes_priority = true,
                                     .hidden_size = 16};
  cadre::ApiRequest request;
  const auto error = endpoints[data[0] % endpoints.size()]->parse(body, context, &request);
  if (error) {
    CADRE_CHECK(error->status >= 400 && error->status < 500, "status {}", error->status);
    CADRE_CHECK(!error->message.empty());
    (void)error->Body();
    return 0;
  }
  CADRE_CHECK(request.n >= 1 && request.n <= limits.max_choices, "n is {}", request.n);
  CADRE_CHECK(request.stop.size() <= static_cast<size_t>(limits.max_stop_strings));
  CADRE_CHECK(request.sampling.logprobs <= limits.max_logprobs);
  CADRE_CHECK(request.sampling.temperature >= 0);
  return 0;
}
