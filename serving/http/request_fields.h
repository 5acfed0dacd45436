// Fields that several endpoints share, for their parsers. Any thread; errors are kept by `fields`.
#pragma once

#include "serving/http/api_request.h"
#include "serving/http/api_schema.h"
#include "serving/http/json_fields.h"

namespace cadre {

// temperature, top_k, seed, stop_token_ids, n and what else says how tokens are drawn.
void ReadSampling(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

// OpenAI's `stop`: a string or a few.
void ReadStop(JsonFields* fields, const SchemaContext& context, ApiRequest* request);

// model, request_id, stream, stream_options.
void ReadEnvelope(JsonFields* fields, ApiRequest* request);

// Fields that other servers have and this one does not. A value that asks for nothing passes; so do
// those that have no effect here on purpose. Called last: who builds one reads it before.
void RefuseUnbuilt(JsonFields* fields, const ApiRequest& request);

}  // namespace cadre
