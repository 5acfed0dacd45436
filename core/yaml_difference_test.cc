#include "core/yaml_difference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace cadre {
namespace {

std::vector<std::string> Differences(const std::string& a, const std::string& b) {
  const auto found = CompareYaml(a, b);
  if (!found.ok()) return {Message(found.status())};
  std::vector<std::string> lines;
  for (const auto& [path, first, second] : *found) {
    lines.push_back(fmt::format("{}: {} | {}", path, first, second));
  }
  return lines;
}

TEST(CompareYaml, FieldsThatDifferHaveTheirPathAndBothValues) {
  EXPECT_THAT(Differences("a: 1\nb: {c: x, d: 2}\n", "a: 1\nb: {c: y, d: 2}\n"),
              testing::ElementsAre("b.c: x | y"));
  EXPECT_THAT(Differences("a: 1\nl: [1, 2]\nm: [{p: /a}]\n", "l: [1, 3, 4]\nm: [{p: /b}]\nz: ''\n"),
              testing::ElementsAre("a: 1 | nothing", "l[1]: 2 | 3", "l[2]: nothing | 4",
                                   "m[0].p: /a | /b", "z: nothing | \"\""));
  EXPECT_THAT(Differences("a: {b: 1}\n", "a: [1]\n"),
              testing::ElementsAre("a: a mapping | a list of 1"));
  EXPECT_THAT(Differences("a: {b: 1}\n", "a: {b: 1}\n"), testing::IsEmpty());
}

TEST(CompareYaml, LongTextsAreCutAndStayInOneLine) {
  const auto found = Differences("t: \"a\\nb\"\n", "t: " + std::string(1000, 'x') + "\n");
  ASSERT_EQ(found.size(), 1u);
  EXPECT_THAT(found[0], testing::StartsWith("t: a b | xxx"));
  EXPECT_LT(found[0].size(), 120u);
}

TEST(CompareYaml, WhatIsNoYamlIsAnError) { EXPECT_FALSE(CompareYaml("a: 1\n", "a: [").ok()); }

}  // namespace
}  // namespace cadre
