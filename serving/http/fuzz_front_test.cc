// What http_front_fuzz.cc does, for some inputs that are made from good ones, so that it
// runs where there is no libFuzzer, too.
#include "serving/http/fuzz_front.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace cadre {
namespace {

TEST(FuzzFront, ChangedRequestsAreAnsweredAndTheServerLivesOn) {
  const std::vector<std::string> seeds = {
      std::string("\0\0", 2) + R"({"prompt":"a","max_tokens":4,"n":2,"stop":["x"],"logprobs":2})",
      std::string("\0\x03", 2) + R"({"prompt":[1,2,3],"stream":true,"seed":5,"echo":true})",
      std::string("\1\0", 2) + R"({"messages":[{"role":"user","content":"hi"}],"stream":true})",
      std::string("\2\1", 2) + "e\r\n{\"prompt\":\"a\"}\r\n0\r\nX: y\r\n\r\n",
      std::string("\3\5", 2) + "Host: x\r\nConnection: keep-alive\r\nX-Api-Key: k",
      std::string("\4\5", 2) + "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n{}x",
      std::string("\5\7", 2) + "GET /health HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n"};
  FuzzFront front;
  std::mt19937 random(1);
  for (int round = 0; round < 150; ++round) {
    std::string input = seeds[random() % seeds.size()];
    for (unsigned change = random() % 4; change > 0; --change) {
      const size_t at = 2 + random() % (input.size() - 2);
      switch (random() % 4) {
        case 0:
          input[at] = static_cast<char>(random());
          break;
        case 1:
          input.erase(at, random() % 8);
          break;
        case 2:
          input.insert(at, input.substr(2, random() % 20));
          break;
        default:
          input.insert(at, 1, "\r\n\"{}[]:,\0\x80\xff 09e-"[random() % 18]);
      }
      if (input.size() < 3) input += "   ";
    }
    input[1] = static_cast<char>(random());
    front.Try({reinterpret_cast<const uint8_t*>(input.data()), input.size()});
  }
}

}  // namespace
}  // namespace cadre
