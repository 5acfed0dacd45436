#include "model/tokenizer_decoder.h"

#include "model/tokenizer_json_node.h"
#include "model/tokenizer_normalizer.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

// "<0x0A>" as its byte, or -1.
int FallbackByte(std::string_view token) {
  if (token.size() != 6 || !token.starts_with("<0x") || token[5] != '>') return -1;
  const int high = HexValue(token[3]), low = HexValue(token[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

void StripChars(std::string_view what, size_t left, size_t right, std::string* text) {
  std::string_view kept = *text;
  for (; left > 0 && kept.starts_with(what); --left) kept.remove_prefix(what.size());
  for (; right > 0 && kept.ends_with(what); --right) kept.remove_suffix(what.size());
  *text = std::string(kept);
}

constexpr int64_t kMaxStrip = 1'000'000;

}  // namespace

absl::StatusOr<TokenDecoder> TokenDecoder::Parse(const JsonNode& node) {
  TokenDecoder decoder(/*byte_level=*/false);
  decoder.joins_words_ = false;
  CADRE_RETURN_IF_ERROR(VisitSequence(
      node, "decoders",
      [&](const JsonNode& part, std::string_view type) { return decoder.AddStep(part, type); }));
  return decoder;
}

absl::Status TokenDecoder::AddStep(const JsonNode& node, std::string_view type) {
  if (type == "Fuse") {
    fused_ = true;
    return absl::OkStatus();
  }
  if (type == "Strip") return AddStrip(node);
  if (fused_ || byte_level_ || byte_fallback_) {
    return Unimplemented("{}: type \"{}\" after ByteLevel, ByteFallback or Fuse", node.where, type);
  }
  if (type == "ByteLevel") {
    byte_level_ = true;
    return absl::OkStatus();
  }
  if (type == "ByteFallback") {
    byte_fallback_ = true;
    return absl::OkStatus();
  }
  if (type == "Metaspace") return AddMetaspace(node);
  if (type == "Replace") {
    Step step{Kind::kReplace};
    CADRE_ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
    CADRE_RETURN_IF_ERROR(ParsePattern(pattern, &step.pattern, &step.regex));
    CADRE_ASSIGN_OR_RETURN(step.content, node.GetString("content"));
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }
  return Unimplemented(
      "{}: type \"{}\"; known are ByteLevel, ByteFallback, Metaspace, Replace, Fuse, Strip and "
      "Sequence",
      node.where, type);
}

absl::Status TokenDecoder::AddStrip(const JsonNode& node) {
  CADRE_ASSIGN_OR_RETURN(const std::string_view content, node.GetString("content"));
  if (content.empty() || content.size() != CharSize(static_cast<unsigned char>(content[0]))) {
    return InvalidArgument("{}.content: \"{}\"; one character is needed", node.where, content);
  }
  CADRE_ASSIGN_OR_RETURN(const JsonNode start, node.Get("start"));
  CADRE_ASSIGN_OR_RETURN(const int64_t left, start.Integer(0, kMaxStrip));
  CADRE_ASSIGN_OR_RETURN(const JsonNode stop, node.Get("stop"));
  CADRE_ASSIGN_OR_RETURN(const int64_t right, stop.Integer(0, kMaxStrip));
  if (!fused_ && !byte_level_) {
    if (byte_fallback_) return Unimplemented("{}: Strip between ByteFallback and Fuse", node.where);
    steps_.push_back({.kind = Kind::kStrip,
                      .pattern = std::string(content),
                      .left = static_cast<size_t>(left),
                      .right = static_cast<size_t>(right)});
    return absl::OkStatus();
  }
  if (right > 0) return Unimplemented("{}.stop: {}; 0 is needed after Fuse", node.where, right);
  if (strip_left_ > 0) return Unimplemented("{}: a second Strip of the whole text", node.where);
  strip_left_ = static_cast<size_t>(left);
  stripped_ = std::string(content);
  return absl::OkStatus();
}

absl::Status TokenDecoder::AddMetaspace(const JsonNode& node) {
  Step step{Kind::kMetaspace};
  CADRE_ASSIGN_OR_RETURN(step.pattern, node.GetString("replacement", "\u2581"));
  if (step.pattern.empty()) {
    return InvalidArgument("{}.replacement: an empty string; one character is needed", node.where);
  }
  CADRE_ASSIGN_OR_RETURN(const bool prefix, node.GetBool("add_prefix_space", true));
  CADRE_ASSIGN_OR_RETURN(
      const size_t scheme,
      node.GetChoice("prepend_scheme", {"always", "never", "first"}, prefix ? 0 : 1));
  step.drop_at_start = scheme != 1;
  first_differs_ = first_differs_ || step.drop_at_start;
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

std::string TokenDecoder::Bytes(std::string_view token, bool added, bool first,
                                RegexScratch& scratch) const {
  std::string text(token), replaced;
  for (const Step& step : steps_) {
    if (step.kind == Kind::kStrip) {
      StripChars(step.pattern, step.left, step.right, &text);
      continue;
    }
    const bool drop = first && step.drop_at_start;
    const std::string_view content = step.kind == Kind::kReplace ? std::string_view(step.content)
                                     : drop                      ? ""
                                                                 : " ";
    replaced.clear();
    ReplaceAll(text, step.regex, step.pattern, content, scratch, &replaced);
    text.swap(replaced);
  }
  if (byte_level_ && !added) return ByteAlphabet().ToBytes(text).value_or(text);
  const int byte = byte_fallback_ ? FallbackByte(text) : -1;
  return byte < 0 ? text : std::string(1, static_cast<char>(byte));
}

}  // namespace cadre
