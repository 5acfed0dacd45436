#include "core/trace.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>
#include <vector>

#include "core/file.h"

namespace cadre {
namespace {

using nlohmann::json;

class TraceFile : public testing::Test {
 protected:
  void TearDown() override { std::filesystem::remove(path_); }
  json Events() { return json::parse(*ReadFile(path_)); }
  const std::string path_ = testing::TempDir() + fmt::format("/trace_test.{}.json", getpid());
};

TEST_F(TraceFile, ScopesNestAndCarryTheirArguments) {
  auto trace = Trace::Create(path_);
  ASSERT_TRUE(trace.ok());
  (*trace)->NameThread("main");
  {
    TraceScope outer(trace->get(), "outer \"x\"", {{"layer", 3}, {"op", "mm\n"}, {"f", 0.5}});
    TraceScope inner(trace->get(), "inner");
    (*trace)->Counter("tokens", 12);
    (*trace)->Instant("now", {{"ok", true}});
  }
  ASSERT_TRUE((*trace)->Close().ok());
  const json events = Events();
  ASSERT_EQ(events.size(), 5);
  EXPECT_EQ(events[0]["args"]["name"], "main");
  EXPECT_EQ(events[1]["ph"], "C");
  EXPECT_EQ(events[1]["args"]["value"], 12);
  EXPECT_EQ(events[3]["name"], "inner");
  const json& outer = events[4];
  EXPECT_EQ(outer["name"], "outer \"x\"");
  EXPECT_EQ(outer["args"], json({{"layer", 3}, {"op", "mm\n"}, {"f", 0.5}}));
  EXPECT_LE(outer["ts"].get<double>(), events[3]["ts"].get<double>());
  EXPECT_GE(outer["ts"].get<double>() + outer["dur"].get<double>() + 1e-3,
            events[3]["ts"].get<double>() + events[3]["dur"].get<double>());
}

TEST_F(TraceFile, ManyThreadsRecordWholeEvents) {
  auto trace = Trace::Create(path_);
  ASSERT_TRUE(trace.ok());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 2000; ++i) TraceScope scope(trace->get(), "work", {{"t", t}, {"i", i}});
    });
  }
  for (std::thread& thread : threads) thread.join();
  ASSERT_TRUE((*trace)->Close().ok());
  const json events = Events();
  EXPECT_EQ(events.size(), 8000);
  std::set<int> ids;
  for (const json& event : events) ids.insert(event["tid"].get<int>());
  EXPECT_EQ(ids.size(), 4);
}

TEST_F(TraceFile, AnEmptyTraceIsAnEmptyArrayAndLateEventsAreDropped) {
  auto trace = Trace::Create(path_);
  ASSERT_TRUE(trace.ok());
  ASSERT_TRUE((*trace)->Close().ok());
  (*trace)->Counter("late", 1);
  ASSERT_TRUE((*trace)->Close().ok());
  EXPECT_EQ(Events(), json::array());
}

TEST(Trace, OffScopesDoNothing) { TraceScope scope(nullptr, "nothing", {{"a", 1}}); }

TEST(Trace, AFullDiskIsWhatCloseReturns) {
  auto trace = Trace::Create("/dev/full");
  ASSERT_TRUE(trace.ok());
  for (int i = 0; i < 5000; ++i) (*trace)->Counter("c", i);
  const absl::Status status = (*trace)->Close();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), testing::HasSubstr("/dev/full"));
}

TEST(Trace, ErrorsNameTheFile) {
  EXPECT_THAT(Message(Trace::Create("/nowhere/t.json").status()),
              testing::HasSubstr("/nowhere/t.json"));
}

}  // namespace
}  // namespace cadre
