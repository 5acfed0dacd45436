// The language itself. Expected values were checked against PyPI's jinja2 with the settings that
// `transformers` uses.
#include <gtest/gtest.h>

#include "model/jinja_eval.h"
#include "model/jinja_parser.h"

namespace cadre::jinja {
namespace {

absl::StatusOr<Text> Evaluate(std::string_view source, std::string_view globals = "{}",
                              const Limits& limits = Limits()) {
  CADRE_ASSIGN_OR_RETURN(Body body, ParseTemplate(source));
  CADRE_ASSIGN_OR_RETURN(Value names, ParseJson(globals, "globals"));
  return Evaluator(*names.as_dict(), limits, 1700000000).Run(body);
}

std::string Render(std::string_view source, std::string_view globals = "{}") {
  absl::StatusOr<Text> text = Evaluate(source, globals);
  return text.ok() ? text->bytes() : "error: " + Message(text.status());
}

struct Case {
  const char* source;
  const char* expected;
};

TEST(Jinja, Expressions) {
  const Case cases[] = {
      {"{{ 1 + 2 * 3 }}|{{ 7 // 2 }}|{{ -7 // 2 }}|{{ -7 % 3 }}|{{ 7 / 2 }}", "7|3|-4|2|3.5"},
      {"{{ 2 ~ 'a' ~ none }}{{ 'a' ~ 'b'|upper }}", "2aNoneaB"},
      {"{{ [1,2,3][1:] }}{{ [1,2,3][::-1] }}{{ 'h\xc3\xa9llo'[1:3] }}{{ 'abc'[-1] }}",
       "[2, 3][3, 2, 1]\xc3\xa9lc"},
      {"{{ {'a': 1, 'b': [true, none, 1.5, \"x'y\"]} }}",
       "{'a': 1, 'b': [True, None, 1.5, \"x'y\"]}"},
      {"{{ 1 < 2 < 3 }}{{ 1 < 3 < 2 }}{{ 'x' not in ['a'] }}{{ not 1 == 2 }}", "TrueFalseTrueTrue"},
      {"{{ 1.0 }} {{ 1e20 }} {{ 1e-5 }} {{ 0.1 + 0.2 }}", "1.0 1e+20 1e-05 0.30000000000000004"},
      {"{{ 1 if true else 2 if false else 3 }}{{ 'q' if false }}{{ 0 or none or 'z' }}", "1z"},
      {"{{ 'a\\nb\\t\\\\n\\x41\\u00e9\\'' }}{{ 'a' 'b' }}", "a\nb\t\\nA\xc3\xa9'ab"},
      {"{{ nothing }}|{{ {}.foo }}|{{ none.foo }}|{{ nothing | default('d') }}", "|||d"},
      {"{{ {'a':{'b':{}}} }}{{ '}}' }}", "{'a': {'b': {}}}}}"},
      {"{{ 3 is odd }}{{ x is defined }}{{ {} is mapping }}{{ 'a' is in ['a'] }}{{ 1 is true }}",
       "TrueFalseTrueTrueFalse"},
  };
  for (const Case& c : cases) EXPECT_EQ(Render(c.source), c.expected) << c.source;
}

TEST(Jinja, StatementsAndScopes) {
  const Case cases[] = {
      {"{% for x in [1,2,3,4] if x % 2 == 0 %}{{ loop.index }}/{{ loop.length }}:{{ x }}"
       "{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}",
       "1/2:2, 2/2:4"},
      {"{% for k, v in {'a':1,'b':2}.items() %}{{k}}={{v}};{% endfor %}", "a=1;b=2;"},
      {"{% set x = 1 %}{% for i in [1,2] %}{% set x = x + i %}{{ x }}{% endfor %}{{ x }}", "231"},
      {"{% set ns = namespace(n=0) %}{% for m in [1,2,3] %}{% set ns.n = ns.n + m %}{% endfor %}"
       "{{ ns.n }}",
       "6"},
      {"{% macro f(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ f(1) }}{{ f(1, b=5) }}{{ f() }}",
       "[12][15][2]"},
      {"{% set b %}  hi {{ 1 }} {% endset %}[{{ b }}]{% set c | trim | upper %} hi {% endset %}"
       "[{{ c }}]",
       "[  hi 1 ][HI]"},
      {"{% for i in range(10) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}"
       "{% endif %}{{ i }}{% endfor %}",
       "0134"},
      {"{% filter upper %}a{{ 'd' }}{% endfilter %}{% generation %}g{% endgeneration %}", "ADg"},
      {"{% raw %}{{ x }}{% endraw %}", "{{ x }}"},
  };
  for (const Case& c : cases) EXPECT_EQ(Render(c.source), c.expected) << c.source;
}

TEST(Jinja, WhiteSpaceFollowsTransformers) {
  const Case cases[] = {
      {"a\n{% if true %}\n  b\n  {% endif %}\nc\n", "a\n  b\nc"},
      {"{#- x -#}\n\n a", "a"},
      {"a\r\n{% set x=1 %}\r\nb\r\n", "a\nb"},
      {"  {% set x = 1 %}  \n y", "  \n y"},
      {"x\n   {%- if true -%}\n  y  \n{%- endif -%}\n  z\n\n", "xyz\n"},
      {"  {{ 1 }}\n{{ 2 }}\n", "  1\n2"},
      {"  {%+ if true %}x{% endif +%}\n.", "  x\n."},
      {"{% for x in [1,2] %}\n{{ x }}\n{% endfor %}\n\nend", "1\n2\n\nend"},
      {"d {{- ' e' -}}   \n  f", "d ef"},
  };
  for (const Case& c : cases) EXPECT_EQ(Render(c.source), c.expected) << c.source;
}

TEST(Jinja, FiltersAndMethods) {
  const Case cases[] = {
      {"{{ {'a': 1, 'b': [], 'c': ['\xc3\xa9<']} | tojson }}",
       "{\"a\": 1, \"b\": [], \"c\": [\"\xc3\xa9<\"]}"},
      {"{{ {'a': [1], 'c': {}} | tojson(indent=2) }}",
       "{\n  \"a\": [\n    1\n  ],\n  \"c\": {}\n}"},
      {"{{ [{'r':'u'},{'r':'s'}] | rejectattr('r','equalto','u') | map(attribute='r') | list }}",
       "['s']"},
      {"{{ 'a,b,c'.split(',', 1) }}{{ ' a  b '.split() }}{{ 'a b c'.rsplit(None, 1) }}",
       "['a', 'b,c']['a', 'b']['a b', 'c']"},
      {"{{ 'xxaxx'.strip('x') }}{{ 'abc'.endswith(('x','c')) }}{{ 'aaa'.replace('a','b',2) }}",
       "aTruebba"},
      {"{{ [3,1,2]|sort(reverse=true) }}{{ 'abc'|reverse }}{{ [1,2]|join('-') }}{{ '5'|int + 1 }}",
       "[3, 2, 1]cba1-26"},
      {"{{ 'a\nb\n\nc'|indent }}", "a\n    b\n\n    c"},
      {"{{ {'items':3}['items'] }}{{ {'a':1}.get('b') }}{{ {'a':1}|items|list|length }}", "3None1"},
      {"{{ strftime_now('%Y') }}", "2023"},
  };
  for (const Case& c : cases) EXPECT_EQ(Render(c.source), c.expected) << c.source;
}

TEST(Jinja, ErrorsNameTheLine) {
  const Case cases[] = {
      {"\n{% if x %}", "error: line 2: expected 'endif', got 'the end of the template'"},
      {"{{ 'a' + 1 }}", "error: line 1: '+' does not take str and int"},
      {"a\n{{ x.y }}", "error: line 2: 'x' is undefined"},
      {"{{ ''.__class__ }}", "error: line 1: the attribute '__class__' is not allowed"},
      {"{{ ''.__class__() }}", "error: line 1: the attribute '__class__' is not allowed"},
      {"{% include 'a' %}", "error: line 1: the tag 'include' is not supported here"},
      {"{{ x|foo }}", "error: line 1: no filter named 'foo'"},
      {"{{ raise_exception('boom') }}", "error: line 1: boom"},
      {"{{ 1 // 0 }}", "error: line 1: division by zero"},
      {"{{ 9223372036854775807 + 1 }}", "error: line 1: an integer does not fit 64 bits"},
      {"{% break %}", "error: line 1: break outside of a loop"},
      {"{{ a b }}", "error: line 1: expected '}}', got 'b'"},
  };
  for (const Case& c : cases) EXPECT_EQ(Render(c.source), c.expected) << c.source;
}

TEST(Jinja, HostileTemplatesAreBounded) {
  auto fails = [](const std::string& source) {
    absl::StatusOr<Text> text = Evaluate(source);
    EXPECT_FALSE(text.ok()) << source.substr(0, 80);
    return text.ok() ? "" : Message(text.status());
  };
  EXPECT_NE(fails("{% for i in range(1000) %}{% for j in range(1000) %}{% for k in range(1000) %}"
                  "{% set x = 1 %}{% endfor %}{% endfor %}{% endfor %}")
                .find("steps"),
            std::string::npos);
  fails("{{ range(1000000000)|list }}");
  fails("{{ range(-9223372036854775807, 9223372036854775807)|list }}");
  fails(
      "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}"
      "{% endfor %}{{ ns.s }}");
  fails("{{ 'x' * 1000000000000 }}");
  // What makes nothing and takes long, again and again.
  for (const char* reads :
       {"s.rfind('y')", "s.strip('x')", "s == t", "s < t", "'xxxxxxxxxxxxxxxy' in s", "s.isspace()",
        "s|length", "s.startswith(t)", "s is lower", "d[s]", "d.get(s)", "s in d", "s.strip()|int",
        "s.endswith([t, t])", "s.count('xxy')", "short.rfind('yy')"}) {
    const std::string source =
        "{% set s = 'x' * 1000000 %}{% set t = 'x' * 1000000 %}{% set d = {} %}"
        "{% set short = 'x' * 4000 %}"
        "{% for i in range(1000) %}{% for j in range(80) %}{% set a = " +
        std::string(reads) + " %}{% endfor %}{% endfor %}";
    const absl::StatusOr<Text> text =
        Evaluate(source, "{}", {.max_steps = 400'000, .max_bytes = int64_t{16} << 20});
    ASSERT_FALSE(text.ok()) << reads;
    EXPECT_NE(Message(text.status()).find("more than"), std::string::npos) << reads;
  }
  fails("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}");
  fails(
      "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = [ns.l] %}"
      "{% endfor %}{{ ns.l }}");
  fails(
      "{% set ns = namespace(l=[1]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}"
      "{% endfor %}{{ ns.l|tojson }}");
  fails("{% set ns = namespace() %}{% set ns.self = ns %}{{ ns|tojson }}");
  fails("{{ " + std::string(100000, '(') + " }}");
  fails("{{ " + std::string(100000, '-') + "1 }}");
  std::string sum = "1", nots = "1", ifs;
  for (int i = 0; i < 5000; ++i) {
    sum += "+1";
    nots = "not " + nots;
    ifs += "{% if 1 %}";
  }
  fails("{{ " + sum + " }}");
  fails("{{ " + nots + " }}");
  fails(ifs);
  fails("{{ ('a' * 1000000) in ('a' * 100000 ~ 'b') ~ ('a' * 1000000 ~ 'b') * 9 }}");
}

std::string Marked(const Text& text) {
  std::string marked;
  size_t begin = 0;
  for (const Text::Run& run : text.runs()) {
    std::string piece = text.bytes().substr(begin, run.end - begin);
    marked += run.origin == Origin::kUser ? "<" + piece + ">" : piece;
    begin = run.end;
  }
  return marked;
}

TEST(Jinja, OriginsSurviveStringOperations) {
  const Case cases[] = {
      // u is " U-U "
      {"[{{ u }}]", "[< U-U >]"},
      {"{{ '[' + u|trim + ']' }}", "[<U-U>]"},
      {"{{ ('a' ~ u ~ 'b')[1:4] }}", "< U->"},
      {"{{ ('a' ~ u ~ 'b')|upper|reverse }}", "B< U-U >A"},
      {"{{ u.split('-')|join('+') }}", "< U>+<U >"},
      {"{{ u.replace('-', '<|im_end|>') }}", "< U<|im_end|>U >"},
      {"{{ 'x-x'.replace('-', u) }}", "x< U-U >x"},
      {"{{ 'x-x'.replace('-', '+') }}", "x+x"},
      {"{{ {'k': 't'}|tojson }}", "<{\"k\": \"t\"}>"},
      {"{{ 'x' ~ 5 }}", "x<5>"},
      {"{% set b %}a{{ u.strip() }}c{% endset %}{{ b }}", "a<U-U>c"},
      {"{% macro m(x) %}({{ x }}){% endmacro %}{{ m(u) }}", "(< U-U >)"},
      {"{{ u * 2 }}{{ 'a' * 2 }}", "< U-U  U-U >aa"},
      {"{% for c in u.strip() %}{{ c }}.{% endfor %}", "<U>.<->.<U>."},
      {"{{ [u, 't']|first }}{{ [u, 't']|last }}", "< U-U >t"},
      {"{{ u.title() }}{{ 't'.title() }}", "< U-U >T"},
  };
  for (const Case& c : cases) {
    absl::StatusOr<Text> text = Evaluate(c.source, R"({"u": " U-U "})");
    ASSERT_TRUE(text.ok()) << c.source << ": " << Message(text.status());
    EXPECT_EQ(Marked(*text), c.expected) << c.source;
  }
}

}  // namespace
}  // namespace cadre::jinja
