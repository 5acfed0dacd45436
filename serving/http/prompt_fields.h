// Prompts as /v1/completions and /v1/embeddings take them. Any thread.
#pragma once

#include "serving/http/api_request.h"
#include "serving/http/api_schema.h"
#include "serving/http/json_fields.h"

namespace cadre {

// request->input_field: a string, a list of strings, a list of token ids or a list of such lists.
// After `n` and `truncate_prompt_tokens` were read. Nothing over the bounds is copied.
void ReadPrompts(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

}  // namespace cadre
