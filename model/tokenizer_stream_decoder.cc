#include "model/tokenizer.h"
#include "model/tokenizer_parts.h"
#include "model/tokenizer_unicode.h"

namespace cadre {

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special_tokens,
                             bool continues_text)
    : tokenizer_(&tokenizer),
      skip_special_tokens_(skip_special_tokens),
      continues_text_(continues_text),
      first_(!continues_text),
      strip_left_(continues_text ? 0 : tokenizer.parts_->decoder->strip_left()) {}

void StreamDecoder::Append(int32_t id, std::string* out) {
  const TokenizerParts& parts = *tokenizer_->parts_;
  if (id < 0 || id >= tokenizer_->vocab_size() || parts.tokens[id].empty()) return;
  if (skip_special_tokens_ && parts.special[id]) return;
  const TokenDecoder& decoder = *parts.decoder;
  if (decoder.joins_words() && !first_) pending_ += ' ';
  if (first_ && decoder.first_differs()) {
    RegexScratch scratch;
    pending_ += decoder.Bytes(parts.tokens[id], parts.added[id], true, scratch);
  } else {
    pending_ += parts.bytes[id];
  }
  first_ = false;
  Emit(/*last=*/false, out);
}

// Moves what is certain from `pending_` to `out`: whole characters, and U+FFFD for what can no
// longer become one.
void StreamDecoder::Emit(bool last, std::string* out) {
  size_t done = 0;
  while (done < pending_.size()) {
    const std::string_view rest = std::string_view(pending_).substr(done);
    const Utf8Part part = NextUtf8Part(rest);
    if (part.truncated && !last) break;
    const std::string_view character = part.valid ? rest.substr(0, part.size) : "\uFFFD";
    if (strip_left_ > 0 && character == tokenizer_->parts_->decoder->stripped()) {
      --strip_left_;
    } else {
      strip_left_ = 0;
      *out += character;
    }
    done += part.size;
  }
  pending_.erase(0, done);
}

std::string StreamDecoder::Push(int32_t id) {
  std::string text;
  Append(id, &text);
  return text;
}

std::string StreamDecoder::Finish() {
  std::string text;
  Emit(/*last=*/true, &text);
  *this = StreamDecoder(*tokenizer_, skip_special_tokens_, continues_text_);
  return text;
}

}  // namespace cadre
