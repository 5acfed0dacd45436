#include "model/tokenizer.h"

#include <utility>

#include "core/status.h"
#include "model/tokenizer_parts.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

// Scratch that has seen a larger text is not kept.
constexpr size_t kKeptTextBytes = 8 << 20;

// Joins the spans into one text of valid UTF-8 and lists its runs from one origin.
struct JoinedText {
  std::string_view text;
  bool first_from_template;  // of the first run; the origin alternates
};

JoinedText Join(std::span<const TextSpan> spans, EncodeScratch& scratch) {
  scratch.runs.clear();
  if (spans.size() == 1 && IsValidUtf8(spans[0].text)) {
    scratch.runs.push_back({0, spans[0].text.size()});
    return {spans[0].text, spans[0].from_template};
  }
  std::string& text = scratch.joined;
  text.clear();
  bool first = false, current = false;
  for (const TextSpan& span : spans) {
    if (span.text.empty()) continue;
    const size_t begin = text.size();
    if (IsValidUtf8(span.text)) {
      text += span.text;
    } else {
      text += ReplaceInvalidUtf8(span.text);
    }
    if (scratch.runs.empty()) first = current = span.from_template;
    if (scratch.runs.empty() || span.from_template != current) {
      scratch.runs.push_back({begin, text.size()});
      current = span.from_template;
    }
    scratch.runs.back().end = text.size();
  }
  return {text, first};
}

// Encodes text without added tokens in it.
void EncodePlain(const TokenizerParts& parts, std::string_view text, bool at_start,
                 EncodeScratch& scratch, std::vector<int32_t>* ids) {
  scratch.work.text.assign(text);
  parts.pre_tokenizer.Apply(at_start, scratch.regex, &scratch.work);
  for (const TextPiece& piece : scratch.work.pieces) {
    if (ids->size() > scratch.most_ids) return;
    parts.bpe->Encode(
        std::string_view(scratch.work.text).substr(piece.begin, piece.end - piece.begin),
        scratch.bpe, ids);
  }
}

// Encodes a stretch between tokens: normalizes it and finds the tokens that match normalized text.
void EncodeStretch(const TokenizerParts& parts, std::string_view stretch, bool at_start,
                   EncodeScratch& scratch, std::vector<int32_t>* ids) {
  if (parts.normalizer.empty() && parts.normalized_tokens.empty()) {
    EncodePlain(parts, stretch, at_start, scratch, ids);
    return;
  }
  scratch.normalized.assign(stretch);
  parts.normalizer.Apply(scratch.regex, &scratch.normalized, &scratch.spare);
  const std::string_view text = scratch.normalized;
  scratch.inner.clear();
  parts.normalized_tokens.Find(text, 0, text.size(), &scratch.inner);
  CloseSegments(text.size(), &scratch.inner);
  for (const TokenSegment& segment : scratch.inner) {
    if (segment.id >= 0) {
      ids->push_back(segment.id);
    } else {
      EncodePlain(parts, text.substr(segment.begin, segment.end - segment.begin),
                  at_start && segment.begin == 0, scratch, ids);
    }
  }
}

}  // namespace

std::unique_ptr<EncodeScratch> EncodeScratchPool::Take() {
  {
    const std::lock_guard lock(mutex_);
    if (!free_.empty()) {
      std::unique_ptr<EncodeScratch> scratch = std::move(free_.back());
      free_.pop_back();
      return scratch;
    }
  }
  return std::make_unique<EncodeScratch>();
}

void EncodeScratchPool::Give(std::unique_ptr<EncodeScratch> scratch) {
  if (scratch->work.text.capacity() > kKeptTextBytes) return;
  const std::lock_guard lock(mutex_);
  free_.push_back(std::move(scratch));
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

void Tokenizer::EncodeInto(std::span<const TextSpan> spans, size_t most_ids,
                           std::vector<int32_t>* ids) const {
  std::unique_ptr<EncodeScratch> scratch = parts_->scratch.Take();
  scratch->most_ids = most_ids;
  const JoinedText joined = Join(spans, *scratch);
  ids->reserve(ids->size() + std::min(joined.text.size() / 3, most_ids) + 8);
  scratch->segments.clear();
  bool from_template = joined.first_from_template;
  for (const TextPiece& run : scratch->runs) {
    const AddedTokenMatcher& matcher = from_template ? parts_->raw_and_special : parts_->raw_tokens;
    matcher.Find(joined.text, run.begin, run.end, &scratch->segments);
    from_template = !from_template;
  }
  CloseSegments(joined.text.size(), &scratch->segments);
  for (const TokenSegment& segment : scratch->segments) {
    if (ids->size() > most_ids) break;
    if (segment.id >= 0) {
      ids->push_back(segment.id);
    } else {
      EncodeStretch(*parts_, joined.text.substr(segment.begin, segment.end - segment.begin),
                    segment.begin == 0, *scratch, ids);
    }
  }
  parts_->scratch.Give(std::move(scratch));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, EncodeOptions options) const {
  const TextSpan span{text, options.parse_special};
  return EncodeSpans({&span, 1}, options);
}

std::vector<int32_t> Tokenizer::EncodeSpans(std::span<const TextSpan> spans,
                                            const EncodeOptions& options) const {
  std::vector<int32_t> ids;
  if (options.add_special_tokens) ids = parts_->prefix_ids;
  EncodeInto(spans, options.most_ids, &ids);
  if (options.add_special_tokens) {
    ids.insert(ids.end(), parts_->suffix_ids.begin(), parts_->suffix_ids.end());
  }
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  StreamDecoder decoder(*this, skip_special_tokens);
  std::string text;
  for (const int32_t id : ids) decoder.Append(id, &text);
  text += decoder.Finish();
  return text;
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(parts_->tokens.size()); }

std::string_view Tokenizer::TokenString(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return parts_->tokens[id];
}

std::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocab_size()) return {};
  return parts_->bytes[id];
}

std::optional<int32_t> Tokenizer::TokenToId(std::string_view token) const {
  const auto found = parts_->ids.find(token);
  if (found == parts_->ids.end()) return std::nullopt;
  return found->second;
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && parts_->special[id];
}

size_t Tokenizer::TextBytes(std::span<const int32_t> ids) const {
  size_t bytes = 0;
  for (const int32_t id : ids) {
    if (!IsSpecial(id)) bytes += TokenBytes(id).size();
  }
  return bytes;
}

std::optional<int32_t> Tokenizer::bos_id() const { return parts_->bos_id; }
std::optional<int32_t> Tokenizer::eos_id() const { return parts_->eos_id; }
std::optional<int32_t> Tokenizer::pad_id() const { return parts_->pad_id; }
std::optional<int32_t> Tokenizer::unk_id() const { return parts_->unk_id; }
const std::string& Tokenizer::chat_template() const { return parts_->chat_template; }

}  // namespace cadre
