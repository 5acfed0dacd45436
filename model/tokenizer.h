// Text to token ids and back, as Hugging Face's `tokenizer.json` describes it: byte-level BPE
// (gpt2, llama 3, qwen, deepseek, olmoe, gpt_oss) and SentencePiece-style BPE with byte fallback
// (llama 2, mistral, mixtral).
//
//   CADRE_ASSIGN_OR_RETURN(auto tokenizer, Tokenizer::Load("models/llama"));
//   std::vector<int32_t> ids = tokenizer->Encode("Hello", {.add_special_tokens = true});
//   std::string text = tokenizer->Decode(ids, /*skip_special_tokens=*/true);
//
// A Tokenizer never changes after Load: any number of threads may call any const method at once.
// Scratch memory and word caches are lent to each call from a pool inside; they never change a
// result. A StreamDecoder belongs to one thread at a time and must not outlive its Tokenizer.
//
// Text is UTF-8. Encode never fails: what is not UTF-8 is encoded as U+FFFD, one per maximal broken
// part, so a caller that wants to refuse such input asks IsValidUtf8 first (the front ends do:
// the CLI exits with an error, the server answers 400). Decode always returns valid UTF-8: bytes
// that form no character become U+FFFD by the same rule.
#pragma once

#include <absl/status/statusor.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace cadre {

struct EncodeOptions {
  // Adds what the model's post-processor adds around one sequence (BOS, EOS), if anything.
  bool add_special_tokens = false;
  // Whether the text of a special token ("<|im_end|>") becomes that token. Keep it false for text
  // from users. Added tokens that the file does not mark as special match in either case, as in
  // Hugging Face's library.
  bool parse_special = false;
  // Encoding stops soon after so many ids: who refuses longer texts need not wait for their ends.
  size_t most_ids = SIZE_MAX;
};

// A stretch of a rendered prompt: special tokens match inside stretches from the template only.
struct TextSpan {
  std::string_view text;
  bool from_template = false;
};

class StreamDecoder;
struct TokenizerParts;

class Tokenizer {
 public:
  // Reads `model_dir`/tokenizer.json (needed) and tokenizer_config.json, special_tokens_map.json
  // and chat_template.jinja where present. kNotFound: there is no tokenizer.json. kInvalidArgument:
  // a file is not what it should be; the message names file, field, value and what is allowed.
  // kUnimplemented: a part that no supported model uses, named.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& model_dir);

  // The same from memory. `name` stands for the file in messages; `config_json` may be empty.
  static absl::StatusOr<std::unique_ptr<Tokenizer>> Parse(const std::string& name,
                                                          std::string_view tokenizer_json,
                                                          std::string_view config_json = {});

  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  std::vector<int32_t> Encode(std::string_view text, EncodeOptions options = {}) const;

  // Encodes the concatenation of the spans as one text (merges may cross a border), but finds
  // special tokens only inside stretches from the template; no token is found across a border.
  // `options.parse_special` says nothing here.
  std::vector<int32_t> EncodeSpans(std::span<const TextSpan> spans,
                                   const EncodeOptions& options = {}) const;

  // Ids outside [0, vocab_size) and unused ids decode to nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // Highest id + 1, added tokens included. A model's embedding may have more rows (padding), never
  // fewer.
  int32_t vocab_size() const;

  // The entry as the file writes it ("Ġthe", "▁the", "<0x0A>"); empty for unused ids.
  std::string_view TokenString(int32_t id) const;
  // The bytes that the token stands for inside a text (" the", "\n"); not always whole characters.
  // Empty for unused ids. A special token's bytes are its own text.
  std::string_view TokenBytes(int32_t id) const;
  std::optional<int32_t> TokenToId(std::string_view token) const;
  bool IsSpecial(int32_t id) const;
  // Bytes of text that the ids stand for, special tokens counting nothing: the divisor of "bits per
  // byte". The space that SentencePiece puts before a text counts.
  size_t TextBytes(std::span<const int32_t> ids) const;

  // From tokenizer_config.json or special_tokens_map.json; absent where neither names them.
  std::optional<int32_t> bos_id() const;
  std::optional<int32_t> eos_id() const;
  std::optional<int32_t> pad_id() const;
  std::optional<int32_t> unk_id() const;

  // The Jinja source of the model's (default) chat template; empty where it has none.
  const std::string& chat_template() const;

 private:
  friend class StreamDecoder;
  void EncodeInto(std::span<const TextSpan> spans, size_t most_ids,
                  std::vector<int32_t>* ids) const;

  std::unique_ptr<TokenizerParts> parts_;
};

// Detokenizes as ids arrive. What Push and Finish return, put together, is Decode of all ids; no
// multi-byte character is ever split between two returns.
class StreamDecoder {
 public:
  // With `continues_text` the ids follow an earlier text (a prompt): the space that the decoder
  // drops at the start of a text is kept.
  StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens, bool continues_text = false);

  // The text that is certain after this id; often empty in the middle of a character.
  std::string Push(int32_t id);
  // The rest: an unfinished character becomes U+FFFD. The decoder then starts over.
  std::string Finish();

 private:
  void Append(int32_t id, std::string* out);
  void Emit(bool last, std::string* out);
  friend class Tokenizer;

  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  bool continues_text_;
  bool first_ = true;
  size_t strip_left_ = 0;
  std::string pending_;
};

bool IsValidUtf8(std::string_view text);
// Bytes before the first part of `text` that is not UTF-8; all of them where there is none.
size_t ValidUtf8Prefix(std::string_view text);

}  // namespace cadre
