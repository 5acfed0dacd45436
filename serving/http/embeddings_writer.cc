// /v1/embeddings: vectors of length 1.
#include <absl/strings/escaping.h>

#include <bit>
#include <cmath>
#include <utility>

#include "serving/http/answer_json.h"

namespace cadre {
namespace {

static_assert(std::endian::native == std::endian::little, "base64 carries little-endian floats");

// The first `dimensions` values (0: all), divided by their length. Zeros stay zeros.
std::vector<float> Normalized(std::vector<float> values, int dimensions) {
  if (dimensions > 0) values.resize(std::min(values.size(), static_cast<size_t>(dimensions)));
  double squares = 0;
  for (float value : values) squares += static_cast<double>(value) * static_cast<double>(value);
  if (squares == 0) return values;
  const double length = std::sqrt(squares);
  for (float& value : values) value = static_cast<float>(static_cast<double>(value) / length);
  return values;
}

std::string Base64(const std::vector<float>& values) {
  const std::string bytes(reinterpret_cast<const char*>(values.data()),
                          values.size() * sizeof(float));
  return absl::Base64Escape(bytes);
}

class EmbeddingsWriter : public AnswerWriter {
 public:
  using AnswerWriter::AnswerWriter;

  std::string Whole() const override {
    Json data = Json::array();
    for (size_t i = 0; i < choices().size(); ++i) {
      const std::vector<float> values = Normalized(choices()[i].embedding, facts().dimensions);
      data.push_back({{"object", "embedding"},
                      {"index", i},
                      {"embedding", facts().base64 ? Json(Base64(values)) : Json(values)}});
    }
    const int64_t tokens = CountUsage().prompt;
    return Dump({{"id", facts().id},
                 {"object", "list"},
                 {"created", facts().created},
                 {"model", facts().model},
                 {"data", std::move(data)},
                 {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}});
  }
  // Nothing here streams.
  std::string StreamEnd() override { return ""; }
  std::string StreamError(const ApiError&) override { return ""; }

 private:
  std::string Events(size_t, const ChoiceDelta&, bool) override { return ""; }
};

}  // namespace

std::unique_ptr<AnswerWriter> MakeEmbeddingsWriter(const Tokenizer& tokenizer, AnswerFacts facts) {
  return std::make_unique<EmbeddingsWriter>(tokenizer, std::move(facts));
}

}  // namespace cadre
