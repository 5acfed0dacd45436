#include "serving/grammar/json_grammar.h"

#include <nlohmann/json.hpp>

namespace cadre {
namespace {

const std::vector<CodepointRange> kDigit = {{'0', '9'}};
const std::vector<CodepointRange> kHex = {{'0', '9'}, {'A', 'F'}, {'a', 'f'}};
// What a JSON string holds as it is.
const std::vector<CodepointRange> kPlain = {{' ', '!'}, {'#', '['}, {']', kMaxCodepoint}};

bool Contains(const std::vector<CodepointRange>& ranges, uint32_t c) {
  for (const CodepointRange& range : ranges) {
    if (c >= range.first && c <= range.last) return true;
  }
  return false;
}

}  // namespace

NodeId JsonStringCharacters(Grammar& g, std::vector<CodepointRange> ranges) {
  ranges = Normalized(std::move(ranges));
  const std::vector<CodepointRange> escaped = {{0, 0x1F}, {'"', '"'}, {'\\', '\\'}};
  std::vector<NodeId> choices;
  if (auto plain = Without(ranges, escaped); !plain.empty()) {
    choices.push_back(g.Class(std::move(plain)));
  }
  static constexpr std::string_view kCodes = "\"\\\b\t\n\f\r", kLetters = "\"\\btnfr";
  for (const CodepointRange& range : escaped) {
    for (uint32_t c = range.first; c <= range.last; ++c) {
      if (!Contains(ranges, c)) continue;
      const size_t named = kCodes.find(static_cast<char>(c));
      choices.push_back(g.Bytes(named == std::string_view::npos
                                    ? fmt::format("\\u{:04x}", c)
                                    : std::string("\\") + kLetters[named]));
    }
  }
  return g.Choice(std::move(choices));
}

template <typename Make>
NodeId JsonRules::Once(RuleId* rule, const char* name, Make make) {
  if (*rule < 0) {
    *rule = g_.AddRule(name);  // before the body, which may name it
    const RuleId made = *rule;
    const NodeId body = make();
    g_.rules[made].body = body;
  }
  return g_.Rule(*rule);
}

NodeId JsonRules::Space() {
  if (space_ < 0) {
    const NodeId indent = g_.Repeat(g_.Class({{' ', ' '}, {'\t', '\t'}}), 0, 20);
    space_ = g_.Optional(g_.Choice({g_.Bytes(" "), g_.Sequence({g_.Bytes("\n"), indent})}));
  }
  return space_;
}

NodeId JsonRules::StringCharacter() {
  if (character_ < 0) {
    const NodeId hex = g_.Class(kHex);
    const NodeId low = g_.Sequence({g_.Class({{'D', 'D'}, {'d', 'd'}}), g_.Class({{'0', '7'}})});
    const NodeId high =
        g_.Sequence({g_.Class({{'0', '9'}, {'A', 'C'}, {'E', 'F'}, {'a', 'c'}, {'e', 'f'}}), hex});
    const NodeId code = g_.Sequence({g_.Bytes("u"), g_.Choice({low, high}), hex, hex});
    std::vector<CodepointRange> letters;
    for (char c : std::string_view("\"\\/bfnrt")) letters.push_back({uint8_t(c), uint8_t(c)});
    const NodeId escape =
        g_.Sequence({g_.Bytes("\\"), g_.Choice({g_.Class(std::move(letters)), code})});
    character_ = g_.Choice({g_.Class(kPlain), escape});
  }
  return character_;
}

NodeId JsonRules::String() {
  return Once(&string_, "json-string", [&] {
    return g_.Sequence({g_.Bytes("\""), g_.Repeat(StringCharacter(), 0, -1), g_.Bytes("\"")});
  });
}

NodeId JsonRules::Integer() {
  return Once(&integer_, "json-integer", [&] {
    const NodeId digit = g_.Class(kDigit);
    const NodeId positive = g_.Sequence({g_.Class({{'1', '9'}}), g_.Repeat(digit, 0, 15)});
    return g_.Sequence({g_.Optional(g_.Bytes("-")), g_.Choice({g_.Bytes("0"), positive})});
  });
}

NodeId JsonRules::Number() {
  return Once(&number_, "json-number", [&] {
    const NodeId digit = g_.Class(kDigit);
    const NodeId fraction = g_.Sequence({g_.Bytes("."), g_.Repeat(digit, 1, 16)});
    const NodeId exponent =
        g_.Sequence({g_.Class({{'E', 'E'}, {'e', 'e'}}),
                     g_.Optional(g_.Class({{'+', '+'}, {'-', '-'}})), g_.Repeat(digit, 1, 2)});
    return g_.Sequence({Integer(), g_.Optional(fraction), g_.Optional(exponent)});
  });
}

NodeId JsonRules::Value() {
  return Once(&value_, "json-value", [&] {
    return g_.Choice({String(), Number(), Object(), Array(), g_.Bytes("true"), g_.Bytes("false"),
                      g_.Bytes("null")});
  });
}

NodeId JsonRules::Enclosed(std::string_view open, NodeId inner, std::string_view close) {
  return g_.Sequence({g_.Bytes(open), Space(), inner, Space(), g_.Bytes(close)});
}

NodeId JsonRules::Comma() { return g_.Sequence({Space(), g_.Bytes(","), Space()}); }

NodeId JsonRules::Colon() { return g_.Sequence({Space(), g_.Bytes(":"), Space()}); }

NodeId JsonRules::Object() {
  return Once(&object_, "json-object", [&] {
    const NodeId member = g_.Sequence({String(), Colon(), Value()});
    return Enclosed("{", g_.Members(Comma(), {member}, {true}, true), "}");
  });
}

NodeId JsonRules::Array() {
  return Once(&array_, "json-array", [&] { return ArrayOf(Value(), 0, -1); });
}

NodeId JsonRules::ArrayOf(NodeId item, int64_t min, int64_t max) {
  if (max == 0) return Enclosed("[", g_.Sequence({}), "]");
  const NodeId next = g_.Sequence({Comma(), item});
  const NodeId items =
      g_.Sequence({item, g_.Repeat(next, min > 0 ? min - 1 : 0, max < 0 ? -1 : max - 1)});
  return Enclosed("[", min == 0 ? g_.Optional(items) : items, "]");
}

NodeId JsonRules::Key(std::string_view name) {
  return g_.Sequence({g_.Bytes(nlohmann::ordered_json(name).dump()), Colon()});
}

absl::StatusOr<NodeId> JsonRules::Literal(const nlohmann::ordered_json& value,
                                          const GrammarLimits& limits) {
  CADRE_RETURN_IF_ERROR(g_.Check(limits));
  if (!value.is_structured() || value.empty()) return g_.Bytes(value.dump());
  std::vector<NodeId> parts;
  for (const auto& [key, member] : value.items()) {
    if (!parts.empty()) parts.push_back(Comma());
    if (value.is_object()) parts.push_back(Key(key));
    CADRE_ASSIGN_OR_RETURN(NodeId part, Literal(member, limits));
    parts.push_back(part);
  }
  return value.is_object() ? Enclosed("{", g_.Sequence(std::move(parts)), "}")
                           : Enclosed("[", g_.Sequence(std::move(parts)), "]");
}

namespace {

template <typename Part>
Grammar RootOf(Part part) {
  Grammar g;
  g.root = g.AddRule("root");
  JsonRules rules(g);
  const NodeId body = part(rules);
  g.rules[g.root].body = body;
  return g;
}

}  // namespace

Grammar JsonObjectGrammar() {
  return RootOf([](JsonRules& rules) { return rules.Object(); });
}

Grammar JsonValueGrammar() {
  return RootOf([](JsonRules& rules) { return rules.Value(); });
}

}  // namespace cadre
