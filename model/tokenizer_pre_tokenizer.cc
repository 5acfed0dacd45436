#include "model/tokenizer_pre_tokenizer.h"

#include <algorithm>

#include "model/tokenizer_json_node.h"
#include "model/tokenizer_normalizer.h"
#include "model/tokenizer_unicode.h"

namespace cadre {
namespace {

using Match = PreTokenizedText::Match;

// GPT-2's pattern, which ByteLevel stands for.
constexpr std::string_view kGpt2Pattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void FindRegex(const Regex& regex, std::string_view piece, RegexScratch& scratch,
               std::vector<Match>* matches) {
  size_t previous = 0, from = 0, begin = 0, end = 0;
  while (from <= piece.size() && regex.Find(piece, from, scratch, &begin, &end)) {
    if (previous != begin) matches->push_back({{previous, begin}, false});
    matches->push_back({{begin, end}, true});
    previous = from = end;
    if (begin == end) {
      from += from < piece.size() ? CharSize(static_cast<unsigned char>(piece[from])) : 1;
    }
  }
  if (previous != piece.size()) matches->push_back({{previous, piece.size()}, false});
}

void FindString(std::string_view pattern, std::string_view piece, std::vector<Match>* matches) {
  size_t previous = 0;
  for (size_t at = piece.find(pattern); at != std::string_view::npos;
       at = piece.find(pattern, previous)) {
    if (previous != at) matches->push_back({{previous, at}, false});
    previous = at + pattern.size();
    matches->push_back({{at, previous}, true});
  }
  if (previous != piece.size()) matches->push_back({{previous, piece.size()}, false});
}

void FindChars(bool (*in_class)(char32_t), std::string_view piece, std::vector<Match>* matches) {
  size_t previous = 0;
  for (size_t i = 0, size = 0; i < piece.size(); i += size) {
    if (!in_class(DecodeChar(piece.data() + i, &size))) continue;
    if (previous < i) matches->push_back({{previous, i}, false});
    previous = i + size;
    matches->push_back({{i, previous}, true});
  }
  if (previous < piece.size()) matches->push_back({{previous, piece.size()}, false});
}

// Runs of word characters and runs of neither words nor space, as matches.
void FindWords(std::string_view piece, std::vector<Match>* matches) {
  enum Class { kSpace, kWord, kOther };
  const auto class_of = [](char32_t c) {
    return IsWordChar(c) ? kWord : IsWhitespace(c) ? kSpace : kOther;
  };
  size_t size = 0;
  for (size_t i = 0, end = 0; i < piece.size(); i = end) {
    const Class kind = class_of(DecodeChar(piece.data() + i, &size));
    end = i + size;
    while (end < piece.size() && class_of(DecodeChar(piece.data() + end, &size)) == kind) {
      end += size;
    }
    matches->push_back({{i, end}, kind != kSpace});
  }
}

}  // namespace

absl::StatusOr<PreTokenizer> PreTokenizer::Parse(const JsonNode& node) {
  PreTokenizer result;
  CADRE_RETURN_IF_ERROR(VisitSequence(
      node, "pretokenizers",
      [&](const JsonNode& part, std::string_view type) { return result.AddStep(part, type); }));
  return result;
}

absl::Status PreTokenizer::AddStep(const JsonNode& node, std::string_view type) {
  if (byte_level_) return Unimplemented("{}: type \"{}\" after ByteLevel", node.where, type);
  if (type == "Split") return AddSplit(node);
  if (type == "ByteLevel") return AddByteLevel(node);
  if (type == "Metaspace") return AddMetaspace(node);
  if (type == "Digits") {
    CADRE_ASSIGN_OR_RETURN(const bool single, node.GetBool("individual_digits", false));
    steps_.push_back({.kind = Kind::kCharClass,
                      .behavior = single ? Behavior::kIsolated : Behavior::kContiguous,
                      .in_class = IsNumeric});
    return absl::OkStatus();
  }
  if (type == "Punctuation") {
    Step step{.kind = Kind::kCharClass, .in_class = IsPunctuation};
    CADRE_ASSIGN_OR_RETURN(
        const size_t behavior,
        node.GetChoice(
            "behavior",
            {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"}, 1));
    step.behavior = static_cast<Behavior>(behavior);
    steps_.push_back(std::move(step));
    return absl::OkStatus();
  }
  if (type == "Whitespace") {
    steps_.push_back(
        {.kind = Kind::kWhitespaceWords, .behavior = Behavior::kRemoved, .invert = true});
    return absl::OkStatus();
  }
  if (type == "WhitespaceSplit") {
    steps_.push_back(
        {.kind = Kind::kCharClass, .behavior = Behavior::kRemoved, .in_class = IsWhitespace});
    return absl::OkStatus();
  }
  return Unimplemented(
      "{}: type \"{}\"; known are Split, ByteLevel, Digits, Punctuation, Metaspace, Whitespace, "
      "WhitespaceSplit and Sequence",
      node.where, type);
}

absl::Status PreTokenizer::AddSplit(const JsonNode& node) {
  Step step{.kind = Kind::kRegex};
  CADRE_ASSIGN_OR_RETURN(const JsonNode pattern, node.Get("pattern"));
  CADRE_RETURN_IF_ERROR(ParsePattern(pattern, &step.pattern, &step.regex));
  if (!step.regex) step.kind = Kind::kString;
  CADRE_ASSIGN_OR_RETURN(
      const size_t behavior,
      node.GetChoice("behavior",
                     {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"},
                     1));
  step.behavior = static_cast<Behavior>(behavior);
  CADRE_ASSIGN_OR_RETURN(step.invert, node.GetBool("invert", false));
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddByteLevel(const JsonNode& node) {
  CADRE_ASSIGN_OR_RETURN(const bool prefix_space, node.GetBool("add_prefix_space", true));
  CADRE_ASSIGN_OR_RETURN(const bool use_regex, node.GetBool("use_regex", true));
  if (prefix_space) steps_.push_back({.kind = Kind::kPrefixSpace});
  if (use_regex) {
    CADRE_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kGpt2Pattern, node.where));
    steps_.push_back({.kind = Kind::kRegex, .regex = std::move(regex)});
  }
  byte_level_ = true;
  return absl::OkStatus();
}

absl::Status PreTokenizer::AddMetaspace(const JsonNode& node) {
  Step step{.kind = Kind::kMetaspace, .behavior = Behavior::kMergedWithNext};
  CADRE_ASSIGN_OR_RETURN(step.pattern, node.GetString("replacement", "\u2581"));
  if (step.pattern.empty()) {
    return InvalidArgument("{}.replacement: an empty string; one character is needed", node.where);
  }
  // Files from before `prepend_scheme` say only whether.
  CADRE_ASSIGN_OR_RETURN(const bool prefix, node.GetBool("add_prefix_space", true));
  CADRE_ASSIGN_OR_RETURN(
      const size_t scheme,
      node.GetChoice("prepend_scheme", {"always", "never", "first"}, prefix ? 0 : 1));
  step.prepend = static_cast<Prepend>(scheme);
  CADRE_ASSIGN_OR_RETURN(step.split, node.GetBool("split", true));
  steps_.push_back(std::move(step));
  return absl::OkStatus();
}

void PreTokenizer::FindMatches(const Step& step, std::string_view piece, RegexScratch& scratch,
                               PreTokenizedText* work) {
  std::vector<Match>* matches = &work->matches;
  matches->clear();
  switch (step.kind) {
    case Kind::kRegex:
      FindRegex(*step.regex, piece, scratch, matches);
      break;
    case Kind::kCharClass:
      FindChars(step.in_class, piece, matches);
      break;
    case Kind::kWhitespaceWords:
      FindWords(piece, matches);
      break;
    case Kind::kString:
    case Kind::kMetaspace:
      FindString(step.pattern, piece, matches);
      break;
    case Kind::kPrefixSpace:
      break;
  }
  if (!step.invert) return;
  for (Match& match : *matches) match.is_match = !match.is_match;
}

namespace {

void AppendPiece(size_t base, TextPiece piece, std::vector<TextPiece>* pieces) {
  if (piece.begin != piece.end) pieces->push_back({base + piece.begin, base + piece.end});
}

// Joins neighbours: a match to the stretch before it, or (reading backwards) to the one behind it.
void MergeMatches(bool with_next, std::vector<Match>* matches) {
  if (with_next) std::reverse(matches->begin(), matches->end());
  size_t kept = 0;
  bool previous = false;
  for (const Match match : *matches) {
    if (match.is_match && !previous && kept > 0) {
      TextPiece& last = (*matches)[kept - 1].at;
      (with_next ? last.begin : last.end) = with_next ? match.at.begin : match.at.end;
    } else {
      (*matches)[kept++] = match;
    }
    previous = match.is_match;
  }
  matches->resize(kept);
  if (with_next) std::reverse(matches->begin(), matches->end());
}

void MergeContiguous(std::vector<Match>* matches) {
  size_t kept = 0;
  bool previous = false;
  for (const Match match : *matches) {
    if (match.is_match == previous && kept > 0) {
      (*matches)[kept - 1].at.end = match.at.end;
    } else {
      (*matches)[kept++] = match;
    }
    previous = match.is_match;
  }
  matches->resize(kept);
}

}  // namespace

void PreTokenizer::Split(const Step& step, RegexScratch& scratch, PreTokenizedText* work) {
  work->spare_pieces.clear();
  for (const TextPiece& piece : work->pieces) {
    const std::string_view text =
        std::string_view(work->text).substr(piece.begin, piece.end - piece.begin);
    FindMatches(step, text, scratch, work);
    switch (step.behavior) {
      case Behavior::kRemoved:
        std::erase_if(work->matches, [](const Match& match) { return match.is_match; });
        break;
      case Behavior::kIsolated:
        break;
      case Behavior::kMergedWithPrevious:
        MergeMatches(false, &work->matches);
        break;
      case Behavior::kMergedWithNext:
        MergeMatches(true, &work->matches);
        break;
      case Behavior::kContiguous:
        MergeContiguous(&work->matches);
        break;
    }
    for (const Match& match : work->matches) {
      AppendPiece(piece.begin, match.at, &work->spare_pieces);
    }
  }
  work->pieces.swap(work->spare_pieces);
}

// Puts a space (or Metaspace's character) before pieces and replaces spaces.
void PreTokenizer::Rewrite(const Step& step, bool at_start, PreTokenizedText* work) {
  const bool metaspace = step.kind == Kind::kMetaspace;
  const std::string_view mark = metaspace ? std::string_view(step.pattern) : " ";
  std::string& out = work->spare_text;
  out.clear();
  for (TextPiece& piece : work->pieces) {
    const std::string_view text =
        std::string_view(work->text).substr(piece.begin, piece.end - piece.begin);
    const bool wanted = step.prepend == Prepend::kAlways ||
                        (step.prepend == Prepend::kFirst && at_start && piece.begin == 0);
    const size_t begin = out.size();
    if (wanted && !text.starts_with(mark) && !text.starts_with(' ')) out += mark;
    size_t copied = 0;
    while (metaspace) {
      const size_t space = text.find(' ', copied);
      if (space == std::string_view::npos) break;
      (out += text.substr(copied, space - copied)) += mark;
      copied = space + 1;
    }
    out += text.substr(copied);
    piece = {begin, out.size()};
  }
  work->text.swap(out);
}

void PreTokenizer::Apply(bool at_start, RegexScratch& scratch, PreTokenizedText* work) const {
  work->pieces.clear();
  if (work->text.empty()) return;
  work->pieces.push_back({0, work->text.size()});
  for (const Step& step : steps_) {
    if (step.kind == Kind::kPrefixSpace || step.kind == Kind::kMetaspace) {
      Rewrite(step, at_start, work);
    }
    if (step.kind == Kind::kPrefixSpace || (step.kind == Kind::kMetaspace && !step.split)) continue;
    Split(step, scratch, work);
  }
}

}  // namespace cadre
