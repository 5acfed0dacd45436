// /v1/embeddings
#include <absl/strings/escaping.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "serving/http/http_test_fixture.h"

namespace cadre {
namespace {

// The engine gives {3, 0, 4, 0} times the prompt's tokens.
class EmbeddingsEndpointTest : public HttpServerTest {
 protected:
  Reply Embed(Json extra) {
    Json body = {{"input", "abc"}, {"model", "tiny"}};
    body.update(extra);
    return Post("/v1/embeddings", body);
  }
};

TEST_F(EmbeddingsEndpointTest, VectorsOfLengthOne) {
  const Json body = Embed({{"input", {"abc", "de"}}}).json();
  EXPECT_EQ(body["object"], "list");
  EXPECT_EQ(body["model"], "tiny");
  EXPECT_EQ(body["usage"], (Json{{"prompt_tokens", 5}, {"total_tokens", 5}}));
  ASSERT_EQ(body["data"].size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(body["data"][i]["index"], i);
    EXPECT_EQ(body["data"][i]["object"], "embedding");
    const auto values = body["data"][i]["embedding"].get<std::vector<float>>();
    EXPECT_EQ(values, (std::vector<float>{0.6f, 0, 0.8f, 0}));
  }
  const std::vector<GenerationRequest> requests = engine_.requests();
  EXPECT_EQ(requests[0].pooling, Pooling::kLast);
  EXPECT_EQ(requests[0].sampling.max_tokens, 0);
}

TEST_F(EmbeddingsEndpointTest, InputsAreTextsOrIds) {
  EXPECT_EQ(Embed({{"input", {97, 98}}}).json()["usage"]["total_tokens"], 2);
  EXPECT_EQ(Embed({{"input", {Json::array({97}), Json::array({98})}}}).json()["data"].size(), 2u);
  EXPECT_EQ(engine_.prompts()[0], (std::vector<int32_t>{97, 98}));
}

TEST_F(EmbeddingsEndpointTest, Base64CarriesTheSameFloats) {
  const std::string text = Embed({{"encoding_format", "base64"}}).json()["data"][0]["embedding"];
  std::string bytes;
  ASSERT_TRUE(absl::Base64Unescape(text, &bytes));
  ASSERT_EQ(bytes.size(), 16u);
  float values[4];
  std::memcpy(values, bytes.data(), sizeof(values));
  EXPECT_EQ(values[0], 0.6f);
  EXPECT_EQ(values[2], 0.8f);
}

TEST_F(EmbeddingsEndpointTest, FewerDimensionsAreNormalizedAnew) {
  const Json body = Embed({{"dimensions", 2}}).json();
  EXPECT_EQ(body["data"][0]["embedding"].get<std::vector<float>>(), (std::vector<float>{1, 0}));
}

TEST_F(EmbeddingsEndpointTest, TheServerSaysHowItPools) {
  HttpServerOptions options;
  options.service.pooling = Pooling::kMean;
  Start(options);
  EXPECT_EQ(Embed(Json::object()).status, 200);
  EXPECT_EQ(engine_.requests()[0].pooling, Pooling::kMean);
}

TEST_F(EmbeddingsEndpointTest, BadRequestsNameTheField) {
  const std::pair<Json, const char*> bad[] = {
      {{{"input", nullptr}}, "input"},
      {{{"input", ""}}, "input"},
      {{{"input", {300}}}, "input"},
      {{{"input", {{"a", 1}}}}, "input"},
      {{{"input", std::vector<std::string>(129, "a")}}, "input"},
      {{{"input", std::string(201, 'a')}}, "input"},
      {{{"encoding_format", "int8"}}, "encoding_format"},
      {{{"dimensions", 0}}, "dimensions"},
      {{{"dimensions", 5}}, "dimensions"}};
  for (const auto& [extra, param] : bad) {
    Reply reply = Embed(extra);
    EXPECT_EQ(reply.status, 400) << extra;
    EXPECT_EQ(reply.json()["error"]["param"], param) << reply.body;
  }
  EXPECT_EQ(Embed({{"model", "other"}}).status, 404);
}

}  // namespace
}  // namespace cadre
