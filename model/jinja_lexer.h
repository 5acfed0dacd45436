// Cuts a template into text, tags and the tokens inside them, with the white-space rules that
// `transformers` renders chat templates by: trim_blocks (a line break after a block tag or comment
// goes), lstrip_blocks (blanks before one at the start of a line go), one trailing line break of
// the file goes, and `-` / `+` marks on either side of a tag.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"

namespace cadre::jinja {

enum class TokenKind {
  kData,  // text outside of tags
  kPrintBegin,
  kPrintEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,  // decoded
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind = TokenKind::kEnd;
  std::string text;
  int line = 1;
};

// The last token is kEnd. Errors name the line.
absl::StatusOr<std::vector<Token>> Tokenize(std::string_view source);

}  // namespace cadre::jinja
