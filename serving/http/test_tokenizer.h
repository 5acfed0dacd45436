// For the front's tests: a tokenizer whose tokens are bytes.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace cadre {

using Json = nlohmann::json;

// A byte-level vocabulary: ids 0..255 are the bytes, 256 and 257 are special.
inline std::string TokenizerJson() {
  auto utf8 = [](int c) {
    if (c < 0x80) return std::string(1, static_cast<char>(c));
    return std::string{static_cast<char>(0xc0 | (c >> 6)), static_cast<char>(0x80 | (c & 63))};
  };
  Json vocab;
  int other = 256;
  for (int b = 0; b < 256; ++b) {
    bool plain = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    vocab[utf8(plain ? b : other++)] = b;
  }
  auto special = [](int id, const char* text) {
    return Json{{"id", id},        {"content", text}, {"special", true},    {"single_word", false},
                {"lstrip", false}, {"rstrip", false}, {"normalized", false}};
  };
  return Json{{"version", "1.0"},
              {"added_tokens", {special(256, "<|end|>"), special(257, "<|start|>")}},
              {"normalizer", nullptr},
              {"pre_tokenizer",
               {{"type", "ByteLevel"},
                {"add_prefix_space", false},
                {"trim_offsets", true},
                {"use_regex", true}}},
              {"post_processor", nullptr},
              {"decoder",
               {{"type", "ByteLevel"},
                {"add_prefix_space", true},
                {"trim_offsets", true},
                {"use_regex", true}}},
              {"model",
               {{"type", "BPE"},
                {"dropout", nullptr},
                {"unk_token", nullptr},
                {"continuing_subword_prefix", nullptr},
                {"end_of_word_suffix", nullptr},
                {"fuse_unk", false},
                {"byte_fallback", false},
                {"vocab", vocab},
                {"merges", Json::array()}}}}
      .dump();
}

}  // namespace cadre
