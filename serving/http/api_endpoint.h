// The endpoints that take a body: what each is made of. A new one is a line in api_endpoint.cc, its
// route (router.cc), and a file with what it adds.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "serving/http/answer_writer.h"
#include "serving/http/api_schema.h"
#include "serving/http/router.h"
#include "serving/http/text_answer.h"

namespace cadre {

struct ApiEndpoint {
  Endpoint endpoint;
  ParseFunction* parse;
  // One of the two: sequences run and their deltas are written, or the text is all it takes.
  MakeWriterFunction* make_writer = nullptr;
  AnswerTextFunction* answer_text = nullptr;
  std::string_view id_prefix = "";                             // of its answers
  std::string (*error_body)(const ApiError& error) = nullptr;  // null: OpenAI's, ApiError::Body
};

// Null for endpoints that take no body.
const ApiEndpoint* FindApiEndpoint(Endpoint endpoint);

}  // namespace cadre
