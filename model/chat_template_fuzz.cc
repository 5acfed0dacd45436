// The input is a template, a zero byte, and messages. Whatever they are, rendering ends within its
// limits, and the runs of what it returns cover its text.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "model/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  size_t zero = input.find('\0');
  std::string messages = R"([{"role":"user","content":"a <|b|> c"}])";
  if (zero != std::string_view::npos) messages = std::string(input.substr(zero + 1));
  auto chat = cadre::ChatTemplate::Parse(input.substr(0, zero), R"({"bos_token":"<s>"})");
  if (!chat.ok()) return 0;
  auto rendered = (*chat)->Render({.messages = messages, .now = 1});
  if (rendered.ok()) {
    size_t end = 0;
    for (const auto& run : rendered->runs) {
      CADRE_CHECK(run.end > end);
      end = run.end;
    }
    CADRE_CHECK(end == rendered->text.size());
  }
  (void)(*chat)->RenderForTraining({.messages = messages, .now = 1});
  return 0;
}
