// Fields that several endpoints share, for their parsers. Any thread; errors are kept by `fields`.
#pragma once

#include "serving/http/api_request.h"
#include "serving/http/api_schema.h"
#include "serving/http/json_fields.h"

namespace cadre {

// temperature, top_k, penalties, logit_bias, seed, stop_token_ids and what else says how tokens are
// drawn.
void ReadSampling(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

// OpenAI's n and stop.
void ReadChoices(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

// Stop strings, under an endpoint's name for them: a string or up to `most`.
void ReadStop(JsonFields* fields, const char* name, size_t most, const SchemaContext& context,
              ApiRequest* request);

// prompt_logprobs, which a stream has no place for. After ReadStream.
void ReadPromptLogprobs(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

// model, request_id, priority, cache_salt, kv_budget, kv_eviction: what every request may have.
void ReadScheduling(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

// truncate_prompt_tokens.
void ReadTruncation(JsonFields* fields, ApiRequest* request);

// stream, stream_options, return_token_ids.
void ReadStream(JsonFields* fields, ApiRequest* request);

// Fields that other servers have and this one does not. A value that asks for nothing passes; so do
// those that have no effect here on purpose. Called last: who builds one reads it before.
void RefuseUnbuilt(JsonFields* fields, const ApiRequest& request);

}  // namespace cadre
