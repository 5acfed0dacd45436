// Normalizers, pre-tokenizers, decoders, added tokens: each part's own rules.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/status.h"
#include "model/tokenizer.h"
#include "model/tokenizer_json_node.h"
#include "model/tokenizer_normalizer.h"
#include "model/tokenizer_pre_tokenizer.h"

namespace cadre {
namespace {

using testing::ElementsAre;

std::string Normalize(const std::string& json, std::string text) {
  simdjson::dom::parser parser;
  auto normalizer = Normalizer::Parse({parser.parse(json), "test:"});
  EXPECT_TRUE(normalizer.ok()) << Message(normalizer.status());
  RegexScratch scratch;
  std::string spare;
  normalizer->Apply(scratch, &text, &spare);
  return text;
}

std::vector<std::string> Cut(const std::string& json, const std::string& text,
                             bool at_start = true) {
  simdjson::dom::parser parser;
  auto pre_tokenizer = PreTokenizer::Parse({parser.parse(json), "test:"});
  EXPECT_TRUE(pre_tokenizer.ok()) << Message(pre_tokenizer.status());
  RegexScratch scratch;
  PreTokenizedText work;
  work.text = text;
  pre_tokenizer->Apply(at_start, scratch, &work);
  std::vector<std::string> pieces;
  for (const TextPiece& piece : work.pieces) {
    pieces.push_back(work.text.substr(piece.begin, piece.end - piece.begin));
  }
  return pieces;
}

TEST(Normalizer, UnicodeForms) {
  const std::string text = "xe\u0301\u00e9 \uFB01\u212B";
  EXPECT_EQ(Normalize(R"({"type":"NFC"})", text), "x\u00e9\u00e9 \uFB01\u00C5");
  EXPECT_EQ(Normalize(R"({"type":"NFD"})", text), "xe\u0301e\u0301 \uFB01A\u030A");
  EXPECT_EQ(Normalize(R"({"type":"NFKC"})", text), "x\u00e9\u00e9 fi\u00C5");
  EXPECT_EQ(Normalize(R"({"type":"NFKD"})", text), "xe\u0301e\u0301 fiA\u030A");
}

TEST(Normalizer, TextEdits) {
  EXPECT_EQ(Normalize(R"({"type":"Lowercase"})", "AbÉİ"), "abéi\u0307");
  EXPECT_EQ(Normalize(R"({"type":"Prepend","prepend":"_"})", "a"), "_a");
  EXPECT_EQ(Normalize(R"({"type":"Prepend","prepend":"_"})", ""), "");
  EXPECT_EQ(Normalize(R"({"type":"Strip","strip_left":true,"strip_right":false})", "\u3000 a "),
            "a ");
  EXPECT_EQ(Normalize(R"({"type":"Strip","strip_left":true,"strip_right":true})", " \u3000 "), "");
  EXPECT_EQ(Normalize(R"({"type":"Replace","pattern":{"String":" "},"content":"__"})", "a b "),
            "a__b__");
  EXPECT_EQ(Normalize(R"({"type":"Replace","pattern":{"Regex":"\\d+"},"content":"#"})", "a12b3"),
            "a#b#");
  EXPECT_EQ(Normalize(R"({"type":"Replace","pattern":{"Regex":"x*"},"content":"-"})", "aé"),
            "-a-é-");
  EXPECT_EQ(Normalize(R"({"type":"Sequence","normalizers":[{"type":"Lowercase"},
                          {"type":"Prepend","prepend":"A"}]})",
                      "B"),
            "Ab");
}

std::string Split(const std::string& behavior, bool invert = false) {
  return R"({"type":"Split","pattern":{"Regex":"-"},"behavior":")" + behavior + R"(","invert":)" +
         (invert ? "true}" : "false}");
}

TEST(PreTokenizer, EverySplitBehavior) {
  const std::string text = "the-final--countdown";
  EXPECT_THAT(Cut(Split("Removed"), text), ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(Cut(Split("Isolated"), text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(Cut(Split("MergedWithPrevious"), text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(Cut(Split("MergedWithNext"), text), ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(Cut(Split("Contiguous"), text), ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(Cut(Split("Removed", true), text), ElementsAre("-", "-", "-"));
}

TEST(PreTokenizer, ByteLevel) {
  const std::string plain = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":true})";
  EXPECT_THAT(Cut(plain, "I've  2 é\n\nx"),
              ElementsAre("I", "'ve", " ", " 2", " é", "\n", "\n", "x"));
  const std::string prefix = R"({"type":"ByteLevel","add_prefix_space":true,"use_regex":true})";
  EXPECT_THAT(Cut(prefix, "a b"), ElementsAre(" a", " b"));
  EXPECT_THAT(Cut(prefix, " a"), ElementsAre(" a"));
  EXPECT_THAT(Cut(R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})", "a b"),
              ElementsAre("a b"));
}

TEST(PreTokenizer, CharacterClasses) {
  EXPECT_THAT(Cut(R"({"type":"Digits","individual_digits":true})", "a12½"),
              ElementsAre("a", "1", "2", "½"));
  EXPECT_THAT(Cut(R"({"type":"Digits","individual_digits":false})", "12a34"),
              ElementsAre("12", "a", "34"));
  EXPECT_THAT(Cut(R"({"type":"Punctuation"})", "a,—b+"), ElementsAre("a", ",", "—", "b", "+"));
  EXPECT_THAT(Cut(R"({"type":"Whitespace"})", "a_b  c.d\u00a0!"),
              ElementsAre("a_b", "c", ".", "d", "!"));
  EXPECT_THAT(Cut(R"({"type":"WhitespaceSplit"})", " a. b"), ElementsAre("a.", "b"));
}

TEST(PreTokenizer, MetaspaceInItsThreeForms) {
  const auto scheme = [](const std::string& name, bool split = true) {
    return R"({"type":"Metaspace","replacement":"▁","prepend_scheme":")" + name + R"(","split":)" +
           (split ? "true}" : "false}");
  };
  EXPECT_THAT(Cut(scheme("always"), "a b"), ElementsAre("▁a", "▁b"));
  EXPECT_THAT(Cut(scheme("always"), " a"), ElementsAre("▁a"));
  EXPECT_THAT(Cut(scheme("never"), "a  b"), ElementsAre("a", "▁", "▁b"));
  EXPECT_THAT(Cut(scheme("first"), "a", true), ElementsAre("▁a"));
  EXPECT_THAT(Cut(scheme("first"), "a", false), ElementsAre("a"));
  EXPECT_THAT(Cut(scheme("always", false), "a b"), ElementsAre("▁a▁b"));
  EXPECT_THAT(Cut(R"({"type":"Metaspace","replacement":"▁","add_prefix_space":false})", "a b"),
              ElementsAre("a", "▁b"));
}

TEST(PreTokenizer, PatternsReadAsOnigurumaDoes) {
  const auto cut = [](const std::string& pattern, const std::string& text) {
    return Cut(R"({"type":"Split","behavior":"Isolated","pattern":{"Regex":")" + pattern + "\"}}",
               text);
  };
  EXPECT_THAT(cut("\\\\s", "a\u180eb\u0085c"), ElementsAre("a\u180eb", "\u0085", "c"));
  EXPECT_THAT(cut("[^\\\\s]+", "ab c"), ElementsAre("ab", " ", "c"));
  EXPECT_THAT(cut("^.", "ab\ncd"), ElementsAre("a", "b\n", "c", "d"));
  EXPECT_THAT(cut("\\\\u0062", "abc"), ElementsAre("a", "b", "c"));
  EXPECT_THAT(cut("[]a]", "a]b"), ElementsAre("a", "]", "b"));
}

// A SentencePiece-style tokenizer as llama 2 has it, over a few letters.
std::string SmallLlama(const std::string& more_added = "") {
  std::string vocab = R"("<unk>":0,"<s>":1,"</s>":2,"▁":3,"a":4,"b":5,"▁a":6,"ab":7)";
  for (int byte = 0; byte < 256; ++byte) vocab += fmt::format(",\"<0x{:02X}>\":{}", byte, byte + 8);
  return R"({"added_tokens":[{"id":1,"content":"<s>","special":true},
      {"id":2,"content":"</s>","special":true})" +
         more_added + R"(],
    "normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},
      {"type":"Replace","pattern":{"String":" "},"content":"▁"}]},
    "post_processor":{"type":"TemplateProcessing",
      "single":[{"SpecialToken":{"id":"<s>","type_id":0}},{"Sequence":{"id":"A","type_id":0}}],
      "special_tokens":{"<s>":{"id":"<s>","ids":[1],"tokens":["<s>"]}}},
    "decoder":{"type":"Sequence","decoders":[
      {"type":"Replace","pattern":{"String":"▁"},"content":" "},{"type":"ByteFallback"},
      {"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]},
    "model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,
      "vocab":{)" +
         vocab + R"(},"merges":[["▁","a"],["a","b"]]}})";
}

std::unique_ptr<Tokenizer> Parsed(const std::string& json, const std::string& config = "") {
  auto tokenizer = Tokenizer::Parse("test", json, config);
  EXPECT_TRUE(tokenizer.ok()) << Message(tokenizer.status());
  return *std::move(tokenizer);
}

TEST(SentencePiece, EncodesWithFallbackAndPrefix) {
  const auto tokenizer = Parsed(SmallLlama());
  EXPECT_THAT(tokenizer->Encode("a ab"), ElementsAre(6, 6, 5));
  EXPECT_THAT(tokenizer->Encode("bab"), ElementsAre(3, 5, 7));
  EXPECT_THAT(tokenizer->Encode("é"), ElementsAre(3, 8 + 0xC3, 8 + 0xA9));
  EXPECT_THAT(tokenizer->Encode("a", {.add_special_tokens = true}), ElementsAre(1, 6));
  EXPECT_THAT(tokenizer->Encode("</s>a", {.parse_special = true}), ElementsAre(2, 6));
  EXPECT_EQ(tokenizer->unk_id(), 0);
  EXPECT_EQ(tokenizer->TokenBytes(6), " a");
  EXPECT_EQ(tokenizer->TokenBytes(8 + 0xC3), "\xC3");
}

TEST(SentencePiece, DecodesAndKeepsTheSpaceOfAContinuation) {
  const auto tokenizer = Parsed(SmallLlama());
  const std::vector<int32_t> ids = tokenizer->Encode("a é b");
  EXPECT_EQ(tokenizer->Decode(ids, true), "a é b");
  StreamDecoder fresh(*tokenizer, true), continued(*tokenizer, true, /*continues_text=*/true);
  EXPECT_EQ(fresh.Push(6), "a");
  EXPECT_EQ(fresh.Push(6), " a");
  EXPECT_EQ(continued.Push(6), " a");
  EXPECT_EQ(fresh.Push(8 + 0xC3), "");
  EXPECT_EQ(fresh.Push(4), "\uFFFDa");
}

TEST(AddedTokens, TakeWhiteSpaceAndRespectWords) {
  const auto tokenizer = Parsed(SmallLlama(
      R"(,{"id":264,"content":"<l>","special":true,"lstrip":true},
          {"id":265,"content":"<r>","special":true,"rstrip":true},
          {"id":266,"content":"ba","special":false,"normalized":false,"single_word":true},
          {"id":267,"content":"<r>b","special":false,"normalized":false},
          {"id":268,"content":"bb","special":false,"normalized":true})"));
  const EncodeOptions parse{.parse_special = true};
  EXPECT_THAT(tokenizer->Encode("a  <l> a", parse), ElementsAre(6, 264, 3, 6));
  EXPECT_THAT(tokenizer->Encode("a<r>  a", parse), ElementsAre(6, 265, 6));
  EXPECT_THAT(tokenizer->Encode("a ba bab", parse), ElementsAre(6, 3, 266, 3, 3, 5, 7));
  EXPECT_THAT(tokenizer->Encode("<r>b<r>", parse), ElementsAre(267, 265));
  // Not special, so found in any text; matched in normalized text, mark and all.
  EXPECT_THAT(tokenizer->Encode("bb"), ElementsAre(268));
  EXPECT_THAT(tokenizer->Encode("abb"), ElementsAre(6, 5, 5));
}

TEST(Config, NamesSpecialTokensAndTemplates) {
  const auto tokenizer = Parsed(SmallLlama(), R"({"bos_token":{"content":"<s>"},"eos_token":"</s>",
      "added_tokens_decoder":{"264":{"content":"<pad>","special":true}},"pad_token":"<pad>",
      "chat_template":[{"name":"tools","template":"x"},{"name":"default","template":"y"}]})");
  EXPECT_EQ(tokenizer->bos_id(), 1);
  EXPECT_EQ(tokenizer->eos_id(), 2);
  EXPECT_EQ(tokenizer->pad_id(), 264);
  EXPECT_EQ(tokenizer->vocab_size(), 265);
  EXPECT_EQ(tokenizer->chat_template(), "y");
  EXPECT_THAT(tokenizer->Encode("<pad>", {.parse_special = true}), ElementsAre(264));
}

}  // namespace
}  // namespace cadre
