// Loads any bytes as tokenizer.json and, where that works, encodes and decodes a little.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = cadre::Tokenizer::Parse("fuzz", text);
  if (!tokenizer.ok()) return 0;
  const std::string_view tail = text.substr(size - std::min<size_t>(size, 200));
  for (const std::string_view input :
       {std::string_view("Hello  w\u00f6rld's 12345 \U0001F999\n\n<s> a\u0301"), tail}) {
    const auto ids =
        (*tokenizer)->Encode(input, {.add_special_tokens = true, .parse_special = true});
    for (const int32_t id : ids) {
      if (id < 0 || id >= (*tokenizer)->vocab_size()) std::abort();
    }
    if (!cadre::IsValidUtf8((*tokenizer)->Decode(ids, true))) std::abort();
  }
  return 0;
}
