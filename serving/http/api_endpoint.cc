#include "serving/http/api_endpoint.h"

namespace cadre {

const ApiEndpoint* FindApiEndpoint(Endpoint endpoint) {
  static constexpr ApiEndpoint kEndpoints[] = {
      {Endpoint::kChat, ParseChatRequest, MakeChatWriter, "chatcmpl-"},
      {Endpoint::kCompletions, ParseCompletionRequest, MakeCompletionWriter, "cmpl-"},
  };
  for (const ApiEndpoint& one : kEndpoints) {
    if (one.endpoint == endpoint) return &one;
  }
  return nullptr;
}

}  // namespace cadre
