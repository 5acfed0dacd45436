#include "model/tokenizer_normalizer.h"

#include <utf8proc.h>

#include <cstdlib>

#include "model/tokenizer_json_node.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

// Normalizes one stretch that no other text can interact with.
void NormalizeStretch(std::string_view text, int options, std::string* out) {
  utf8proc_uint8_t* mapped = nullptr;
  const utf8proc_ssize_t size = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                                             static_cast<utf8proc_ssize_t>(text.size()), &mapped,
                                             static_cast<utf8proc_option_t>(options));
  if (size < 0) {
    *out += text;
    return;
  }
  out->append(reinterpret_cast<const char*>(mapped), static_cast<size_t>(size));
  std::free(mapped);
}

// An ASCII character never changes, and never joins what stands before it, so each stretch from one
// ASCII character up to the next is normalized by itself, those with nothing else not at all.
void NormalizeForm(std::string_view text, int options, std::string* out) {
  const auto ascii = [&](size_t i) { return static_cast<unsigned char>(text[i]) < 0x80; };
  size_t i = 0;
  while (i < text.size()) {
    size_t plain = i;
    while (plain < text.size() && ascii(plain)) ++plain;
    if (plain == text.size()) {
      *out += text.substr(i);
      return;
    }
    const size_t begin = plain > i ? plain - 1 : plain;
    *out += text.substr(i, begin - i);
    size_t end = plain;
    while (end < text.size() && !ascii(end)) ++end;
    NormalizeStretch(text.substr(begin, end - begin), options, out);
    i = end;
  }
}

void Lowercase(std::string_view text, std::string* out) {
  for (size_t i = 0, size = 0; i < text.size(); i += size) {
    const char32_t c = DecodeChar(text.data() + i, &size);
    if (c < 0x80) {
      out->push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 32 : c));
    } else if (c == 0x130) {
      *out += "i\xCC\x87";  // the one character whose lower case is two
    } else {
      AppendChar(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
    }
  }
}

void Strip(bool left, bool right, std::string* text) {
  size_t begin = 0, end = text->size(), size = 0;
  while (left && begin < end && IsWhitespace(DecodeChar(text->data() + begin, &size)))
    begin += size;
  while (right && end > begin) {
    size_t last = end - 1;
    while (last > begin && (static_cast<unsigned char>((*text)[last]) & 0xC0) == 0x80) --last;
    if (!IsWhitespace(DecodeChar(text->data() + last, &size))) break;
    end = last;
  }
  text->erase(end);
  text->erase(0, begin);
}

}  // namespace

void ReplaceAll(std::string_view text, const std::optional<Regex>& regex, std::string_view pattern,
                std::string_view content, RegexScratch& scratch, std::string* out) {
  size_t copied = 0, from = 0, begin = 0, end = 0;
  while (from <= text.size()) {
    if (regex) {
      if (!regex->Find(text, from, scratch, &begin, &end)) break;
    } else {
      begin = text.find(pattern, from);
      if (begin == std::string_view::npos) break;
      end = begin + pattern.size();
    }
    (*out += text.substr(copied, begin - copied)) += content;
    copied = end;
    from = end;
    if (begin == end)
      from += from < text.size() ? CharSize(static_cast<unsigned char>(text[from])) : 1;
  }
  *out += text.substr(copied);
}

absl::Status ParsePattern(const JsonNode& node, std::string* pattern, std::optional<Regex>* regex) {
  if (const auto text = node.Find("String")) {
    CADRE_ASSIGN_OR_RETURN(*pattern, text->String());
    if (pattern->empty()) return text->Wrong("a string that is not empty");
    return absl::OkStatus();
  }
  CADRE_ASSIGN_OR_RETURN(const JsonNode source, node.Get("Regex"));
  CADRE_ASSIGN_OR_RETURN(const std::string_view text, source.String());
  CADRE_ASSIGN_OR_RETURN(*regex, Regex::Compile(text, source.where));
  return absl::OkStatus();
}

absl::StatusOr<Normalizer> Normalizer::Parse(const JsonNode& node) {
  Normalizer normalizer;
  CADRE_RETURN_IF_ERROR(VisitSequence(
      node, "normalizers", [&](const JsonNode& part, std::string_view type) -> absl::Status {
        CADRE_ASSIGN_OR_RETURN(Step step, ParseStep(part, type));
        normalizer.steps_.push_back(std::move(step));
        return absl::OkStatus();
      }));
  return normalizer;
}

absl::StatusOr<Normalizer::Step> Normalizer::ParseStep(const JsonNode& node,
                                                       std::string_view type) {
  if (type == "NFC") return Step{Kind::kNfc};
  if (type == "NFD") return Step{Kind::kNfd};
  if (type == "NFKC") return Step{Kind::kNfkc};
  if (type == "NFKD") return Step{Kind::kNfkd};
  if (type == "Lowercase") return Step{Kind::kLowercase};
  if (type == "Prepend") {
    CADRE_ASSIGN_OR_RETURN(const std::string_view text, node.GetString("prepend"));
    return Step{.kind = Kind::kPrepend, .content = std::string(text)};
  }
  if (type == "Strip") {
    Step step{Kind::kStrip};
    CADRE_ASSIGN_OR_RETURN(step.left, node.GetBool("strip_left", true));
    CADRE_ASSIGN_OR_RETURN(step.right, node.GetBool("strip_right", true));
    return step;
  }
  if (type == "Replace") {
    Step step{Kind::kReplace};
    CADRE_ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
    CADRE_RETURN_IF_ERROR(ParsePattern(pattern, &step.pattern, &step.regex));
    CADRE_ASSIGN_OR_RETURN(step.content, node.GetString("content"));
    return step;
  }
  return Unimplemented(
      "{}: type \"{}\"; known are NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip and "
      "Sequence",
      node.where, type);
}

void Normalizer::ApplyStep(const Step& step, RegexScratch& scratch, std::string* text,
                           std::string* spare) {
  spare->clear();
  switch (step.kind) {
    case Kind::kNfc:
      NormalizeForm(*text, UTF8PROC_STABLE | UTF8PROC_COMPOSE, spare);
      break;
    case Kind::kNfd:
      NormalizeForm(*text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE, spare);
      break;
    case Kind::kNfkc:
      NormalizeForm(*text, UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT, spare);
      break;
    case Kind::kNfkd:
      NormalizeForm(*text, UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT, spare);
      break;
    case Kind::kLowercase:
      Lowercase(*text, spare);
      break;
    case Kind::kPrepend:
      if (text->empty()) return;
      (*spare += step.content) += *text;
      break;
    case Kind::kReplace:
      ReplaceAll(*text, step.regex, step.pattern, step.content, scratch, spare);
      break;
    case Kind::kStrip:
      Strip(step.left, step.right, text);
      return;
  }
  text->swap(*spare);
}

void Normalizer::Apply(RegexScratch& scratch, std::string* text, std::string* spare) const {
  for (const Step& step : steps_) ApplyStep(step, scratch, text, spare);
}

}  // namespace cadre
