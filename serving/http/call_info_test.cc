#include "serving/http/call_info.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

namespace cadre {
namespace {

constexpr char kParent[] = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

TEST(CallInfo, ReadsATraceParent) {
  std::optional<TraceContext> trace = ParseTraceParent(kParent);
  ASSERT_TRUE(trace.has_value());
  EXPECT_EQ(trace->trace_id, "4bf92f3577b34da6a3ce929d0e0e4736");
  EXPECT_EQ(trace->parent_id, "00f067aa0ba902b7");
  trace->span_id = "0123456789abcdef";
  EXPECT_EQ(trace->Header(), "00-4bf92f3577b34da6a3ce929d0e0e4736-0123456789abcdef-01");
  const std::string later = "cc" + std::string(kParent).substr(2);
  EXPECT_TRUE(ParseTraceParent(later).has_value());
  EXPECT_TRUE(ParseTraceParent(later + "-what-comes-later").has_value());
}

TEST(CallInfo, TakesNothingElseForATraceParent) {
  const std::string good = kParent;
  auto with = [&](size_t at, const std::string& text) {
    std::string changed = good;
    return changed.replace(at, text.size(), text);
  };
  const std::string bad[] = {"",
                             good.substr(0, 54),
                             good + "-",
                             good + "0",
                             "cc" + good.substr(2) + "0",
                             with(0, "ff"),
                             with(0, "0g"),
                             with(3, "4BF9"),
                             with(3, std::string(32, '0')),
                             with(36, std::string(16, '0')),
                             with(35, "_"),
                             with(52, "0"),
                             with(53, "\r\n"),
                             with(53, "0x")};
  for (const std::string& header : bad) EXPECT_FALSE(ParseTraceParent(header)) << header;
}

TEST(CallInfo, RequestIdsHaveACharset) {
  for (const char* good : {"a", "req-1_2.3:4/5=6+7@8", "7f2c"}) EXPECT_TRUE(IsRequestId(good));
  const std::string bad[] = {"",     "a b", "a\"b",     "a\\b",
                             "a\nb", "a{b", "\xc3\xa9", std::string(129, 'a')};
  for (const std::string& id : bad) EXPECT_FALSE(IsRequestId(id)) << id;
  EXPECT_TRUE(IsRequestId(std::string(128, 'a')));
}

TEST(CallInfo, OwnNamesDiffer) {
  IdSource one, other;
  std::set<std::string> names;
  for (int i = 0; i < 1000; ++i) {
    for (IdSource* source : {&one, &other}) {
      names.insert(source->RequestId());
      const std::string span = source->SpanId();
      EXPECT_EQ(span.size(), 16u);
      names.insert(span);
      EXPECT_TRUE(IsRequestId(source->RequestId()));
    }
  }
  EXPECT_EQ(names.size(), 4000u);
}

}  // namespace
}  // namespace cadre
