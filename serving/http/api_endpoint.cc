#include "serving/http/api_endpoint.h"

#include "serving/http/messages_error.h"

namespace cadre {

const ApiEndpoint* FindApiEndpoint(Endpoint endpoint) {
  static constexpr ApiEndpoint kEndpoints[] = {
      {.endpoint = Endpoint::kChat,
       .parse = ParseChatRequest,
       .make_writer = MakeChatWriter,
       .id_prefix = "chatcmpl-"},
      {.endpoint = Endpoint::kCompletions,
       .parse = ParseCompletionRequest,
       .make_writer = MakeCompletionWriter,
       .id_prefix = "cmpl-"},
      {.endpoint = Endpoint::kEmbeddings,
       .parse = ParseEmbeddingsRequest,
       .make_writer = MakeEmbeddingsWriter,
       .id_prefix = "embd-"},
      {.endpoint = Endpoint::kMessages,
       .parse = ParseMessagesRequest,
       .make_writer = MakeMessagesWriter,
       .id_prefix = "msg_",
       .error_body = MessagesErrorBody},
      {.endpoint = Endpoint::kCountTokens,
       .parse = ParseCountTokensRequest,
       .answer_text = CountTokensBody,
       .error_body = MessagesErrorBody},
      {.endpoint = Endpoint::kResponses,
       .parse = ParseResponsesRequest,
       .make_writer = MakeResponsesWriter,
       .id_prefix = "resp_"},
      {.endpoint = Endpoint::kTokenize, .parse = ParseTokenizeRequest, .answer_text = TokenizeBody},
      {.endpoint = Endpoint::kDetokenize,
       .parse = ParseDetokenizeRequest,
       .answer_text = DetokenizeBody},
  };
  for (const ApiEndpoint& one : kEndpoints) {
    if (one.endpoint == endpoint) return &one;
  }
  return nullptr;
}

}  // namespace cadre
