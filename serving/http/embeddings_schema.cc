// /v1/embeddings
#include "serving/http/api_schema.h"
#include "serving/http/prompt_fields.h"
#include "serving/http/request_fields.h"

namespace cadre {

std::optional<ApiError> ParseEmbeddingsRequest(std::string_view body, const SchemaContext& context,
                                               ApiRequest* request) {
  Json object;
  if (auto error = ParseJsonObject(body, &object)) return error;
  JsonFields fields(object);
  request->input_field = "input";
  request->embeds = true;
  request->max_tokens = 0;
  ReadScheduling(&fields, context, request);
  ReadTruncation(&fields, request);
  ReadPrompts(&fields, context, request);
  const std::string format = fields.String("encoding_format").value_or("float");
  if (format != "float" && format != "base64") {
    fields.Fail(
        fmt::format("'encoding_format' must be float or base64, got {}", format.substr(0, 60)),
        "encoding_format");
  }
  request->base64 = format == "base64";
  request->dimensions =
      static_cast<int>(fields.Integer("dimensions", 1, context.hidden_size).value_or(0));
  request->add_special_tokens = fields.Bool("add_special_tokens");
  RefuseUnbuilt(&fields, *request);
  request->unknown_fields = fields.Unknown();
  return fields.error();
}

}  // namespace cadre
