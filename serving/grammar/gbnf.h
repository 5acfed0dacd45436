// GBNF, llama.cpp's notation of grammars: `name ::= ...` rules, of which `root` is the whole text.
//
// Supported: "literals" and [classes] with \n \r \t \\ \" \[ \] \- \^ \xHH \uHHHH \UHHHHHHHH, `.`,
// groups, |, * + ? {m} {m,} {m,n}, # comments, rules over several lines inside groups and behind |.
// Left recursion and empty loops are allowed. Refused by name: rules that are used and not defined,
// or defined twice; token references (<...>).
#pragma once

#include <string_view>

#include "serving/grammar/grammar.h"

namespace cadre {

absl::StatusOr<Grammar> ParseGbnf(std::string_view text, const GrammarLimits& limits = {});

}  // namespace cadre
