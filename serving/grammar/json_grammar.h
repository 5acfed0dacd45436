// The parts that every grammar of JSON texts is made of.
//
// White space is what people and programs write: at most one space, or one line break and an indent
// of at most 20, between two tokens; without a bound a model may write nothing else. Numbers have
// at most 16 digits before the point and behind it and 2 in the exponent, so that every parser
// takes them. \u escapes name no surrogates: a string is always valid text.
#pragma once

#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "serving/grammar/grammar.h"

namespace cadre {

// One character of `ranges` inside a JSON string, escaped where it must be and only there.
NodeId JsonStringCharacters(Grammar& g, std::vector<CodepointRange> ranges);

// Rules for JSON values in one grammar, each made when first asked for.
class JsonRules {
 public:
  explicit JsonRules(Grammar& grammar) : g_(grammar) {}

  NodeId Space();
  NodeId String();  // with its quotes
  // One character inside a string, in any spelling.
  NodeId StringCharacter();
  NodeId Number();
  NodeId Integer();
  NodeId Value();   // any
  NodeId Object();  // any
  NodeId Array();   // any
  // Exactly this value, but for white space between tokens. kInvalidArgument: the grammar passes
  // its bounds.
  absl::StatusOr<NodeId> Literal(const nlohmann::ordered_json& value, const GrammarLimits& limits);
  // `"name"` and the colon.
  NodeId Key(std::string_view name);
  NodeId Colon();
  // "[" items "]", of min..max items (max < 0: no bound).
  NodeId ArrayOf(NodeId item, int64_t min, int64_t max);
  // What stands between two members or items.
  NodeId Comma();
  NodeId Enclosed(std::string_view open, NodeId inner, std::string_view close);

 private:
  // A rule by name with the body that `make` writes, made once.
  template <typename Make>
  NodeId Once(RuleId* rule, const char* name, Make make);

  Grammar& g_;
  RuleId string_ = -1, number_ = -1, integer_ = -1, value_ = -1, object_ = -1, array_ = -1;
  NodeId space_ = -1, character_ = -1;
};

// Any JSON object, or any JSON value.
Grammar JsonObjectGrammar();
Grammar JsonValueGrammar();

}  // namespace cadre
