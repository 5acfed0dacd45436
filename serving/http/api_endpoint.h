// The endpoints that take a body: what each is made of. A new one is a line in api_endpoint.cc, its
// route (router.cc), and a file with what it adds.
#pragma once

#include <memory>
#include <optional>
#include <string_view>

#include "serving/http/answer_writer.h"
#include "serving/http/api_schema.h"
#include "serving/http/router.h"

namespace cadre {

struct ApiEndpoint {
  Endpoint endpoint;
  std::optional<ApiError> (*parse)(std::string_view body, const SchemaContext& context,
                                   ApiRequest* request);
  std::unique_ptr<AnswerWriter> (*make_writer)(const Tokenizer& tokenizer, AnswerFacts facts);
  std::string_view id_prefix;  // of its answers
};

// Null for endpoints that take no body.
const ApiEndpoint* FindApiEndpoint(Endpoint endpoint);

}  // namespace cadre
