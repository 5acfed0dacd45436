#include "parallel/trace_merge.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "core/file.h"
#include "core/trace.h"

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::json;

std::string Path(const std::string& name) {
  return (std::filesystem::temp_directory_path() / ("cadre_merge_" + name)).string();
}

void Write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// A part whose clock begins at `start` nanoseconds of its host. Its thread 7 computes; times in
// microseconds.
class PartText {
 public:
  PartText(int rank, int64_t start, int64_t offset, const std::string& run = "r") {
    Add({{"ph", "M"},
         {"name", kTraceRank},
         {"tid", 7},
         {"args",
          {{"rank", rank},
           {"process", fmt::format("rank {} (dp {})", rank, rank)},
           {"run", run},
           {"start_ns", std::to_string(start)},
           {"clock_offset_ns", offset},
           {"clock_bound_ns", 1500}}}});
    Add({{"ph", "M"}, {"name", "thread_name"}, {"tid", 7}, {"args", {{"name", kTraceCompute}}}});
  }
  PartText& Wait(double begin, double duration, int thread = 7) {
    return Add({{"ph", "X"},
                {"cat", kTraceWait},
                {"name", "wait"},
                {"tid", thread},
                {"ts", begin},
                {"dur", duration},
                {"args", Json::object()}});
  }
  PartText& Flight(double begin, double duration, int bucket) {
    Json event = {{"ph", "b"},
                  {"cat", kTraceCollective},
                  {"name", "dp: gradients"},
                  {"id", ++id_},
                  {"tid", 9},
                  {"ts", begin},
                  {"args",
                   {{"group", "dp"},
                    {"label", "gradients"},
                    {"bucket", bucket},
                    {"bytes", 1000},
                    {"in_flight_us", duration}}}};
    Add(event);
    event["ph"] = "e";
    event["ts"] = begin + duration;
    event.erase("args");
    return Add(event);
  }
  PartText& Add(const Json& event) {
    text_ += (text_.empty() ? "[\n" : ",\n") + event.dump();
    return *this;
  }
  std::string Whole() const { return text_ + "\n]\n"; }
  const std::string& Cut() const { return text_; }

 private:
  std::string text_;
  int id_ = 0;
};

Json ReadJson(const std::string& path) { return Json::parse(*ReadFile(path)); }

TEST(TraceMerge, JoinsSpans) {
  const auto joined = UnionOf({{10, 20}, {0, 5}, {15, 30}, {5, 5}, {40, 41}});
  ASSERT_EQ(joined.size(), 3u);
  EXPECT_EQ(joined[1].begin, 10);
  EXPECT_EQ(joined[1].end, 30);
}

TEST(TraceMerge, CountsCoveredTime) {
  const auto waits = UnionOf({{10, 20}, {30, 40}, {50, 60}});
  EXPECT_EQ(CoveredTime({0, 10}, waits), 0);
  EXPECT_EQ(CoveredTime({0, 100}, waits), 30);
  EXPECT_EQ(CoveredTime({15, 35}, waits), 10);
  EXPECT_EQ(CoveredTime({12, 14}, waits), 2);
  EXPECT_EQ(CoveredTime({20, 30}, waits), 0);
  EXPECT_EQ(CoveredTime({59, 70}, waits), 1);
  EXPECT_EQ(CoveredTime({5, 5}, waits), 0);
  EXPECT_EQ(CoveredTime({0, 100}, {}), 0);
}

TEST(TraceMerge, PutsRanksOnOneTimeline) {
  // Rank 1's clock is 5 ms behind, and its trace began 2 ms later.
  const std::string first = Path("first"), second = Path("second"), out = Path("out");
  Write(first, PartText(0, 1'000'000'000, 0).Flight(100, 50, 3).Wait(120, 10).Whole());
  Write(second, PartText(1, 997'000'000, 5'000'000).Flight(100, 40, 3).Wait(100, 40).Whole());
  const auto merged = MergeTraces({second, first}, out);
  ASSERT_TRUE(merged.ok()) << Message(merged.status());
  EXPECT_THAT(merged->ranks, ElementsAre(0, 1));

  std::map<int, Json> flights;
  std::map<int, std::string> names;
  std::map<int64_t, std::string> rows;
  for (const Json& event : ReadJson(out)) {
    const int pid = event.at("pid");
    if (event["ph"] == "b") flights[pid] = event;
    if (event["name"] == "process_name") names[pid] = event["args"]["name"];
    if (event["name"] == "thread_name" && pid == 0) rows[event["tid"]] = event["args"]["name"];
    if (event.value("cat", "") == kTraceWait) {
      EXPECT_EQ(event["tid"], 7 + (1 << 22));
    }
  }
  EXPECT_EQ(names[0], "rank 0 (dp 0)");
  EXPECT_EQ(rows.at(7), kTraceCompute);
  EXPECT_EQ(rows.at(7 + (1 << 22)), "waits");
  EXPECT_DOUBLE_EQ(flights[0]["ts"], 100.0);
  EXPECT_DOUBLE_EQ(flights[1]["ts"], 2100.0);
  EXPECT_EQ(flights[0]["id"], "0.1");
  EXPECT_EQ(flights[1]["id"], "1.1");
  EXPECT_EQ(flights[0]["args"]["bucket"], 3);
  EXPECT_DOUBLE_EQ(flights[0]["args"]["hidden_us"], 40.0);
  EXPECT_DOUBLE_EQ(flights[0]["args"]["waited_us"], 10.0);
  EXPECT_DOUBLE_EQ(flights[0]["args"]["hidden"], 0.8);
  EXPECT_DOUBLE_EQ(flights[1]["args"]["hidden"], 0.0);

  ASSERT_EQ(merged->totals.size(), 1u);
  const CollectiveTotals& total = merged->totals[0];
  EXPECT_EQ(total.operations, 2);
  EXPECT_EQ(total.bytes, 2000);
  EXPECT_EQ(total.flight_ns, 90'000);
  EXPECT_EQ(total.hidden_ns, 40'000);
  EXPECT_THAT(ToTable(merged->totals), HasSubstr("dp     gradients"));
  EXPECT_THAT(ToTable(merged->totals), HasSubstr("44 %"));
}

TEST(TraceMerge, TheTableHasWhatMovedBytesAndCheckpointsInOneLine) {
  const std::string label(40, 'l');
  const std::string table = ToTable({{"checkpoint", "files named", 2, 100, 1000, 1000},
                                     {"checkpoint", "saved", 3, 200, 1000, 0},
                                     {"dp", label, 1, 10, 1000, 500},
                                     {"tp", "end", 1, 0, 1000, 500}});
  EXPECT_EQ(std::ranges::count(table, '\n'), 3) << table;
  EXPECT_THAT(table, HasSubstr("\ncheckpoint  all "));
  EXPECT_THAT(table, HasSubstr(" 5 "));
  EXPECT_THAT(table, testing::Not(HasSubstr("end")));
  // Columns stay columns.
  const std::string head = table.substr(0, table.find('\n'));
  const std::string row =
      table.substr(head.size() + 1, table.find('\n', head.size() + 1) - head.size() - 1);
  EXPECT_EQ(head.size(), row.size()) << table;
}

TEST(TraceMerge, OtherThreadsWaitsHideNothing) {
  const std::string part = Path("threads"), out = Path("out");
  Write(part, PartText(0, 0, 0).Flight(0, 100, 0).Wait(0, 100, /*thread=*/8).Whole());
  const auto merged = MergeTraces({part}, out);
  ASSERT_TRUE(merged.ok()) << Message(merged.status());
  EXPECT_EQ(merged->totals[0].hidden_ns, 100'000);
}

TEST(TraceMerge, TakesPartsThatWereCutShort) {
  const std::string whole = Path("whole"), out = Path("out");
  const PartText text = PartText(2, 0, 0).Flight(0, 10, 0).Wait(5, 5);
  for (size_t cut = 0; cut <= text.Cut().size(); cut += 7) {
    Write(whole, text.Cut().substr(0, cut));
    const auto merged = MergeTraces({whole}, out);
    if (!merged.ok()) {
      EXPECT_EQ(merged.status().code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(Message(merged.status()), HasSubstr("not the trace of a rank"));
    } else {
      EXPECT_TRUE(ReadJson(out).is_array());
    }
  }
}

TEST(TraceMerge, RefusesPartsThatDoNotBelongTogether) {
  const std::string a = Path("a"), b = Path("b"), out = Path("none");
  std::filesystem::remove(out);
  const auto refused = [&](const std::string& first, const std::string& second) {
    Write(a, first);
    Write(b, second);
    return Message(MergeTraces({a, b}, out).status());
  };
  const std::string zero = PartText(0, 0, 0).Whole();
  EXPECT_THAT(refused(zero, zero), HasSubstr("are both of rank 0"));
  EXPECT_THAT(refused(zero, PartText(1, 0, 0, "other").Whole()), HasSubstr("different runs"));
  EXPECT_THAT(refused(zero, "[\nnothing\n]\n"), HasSubstr("not a trace event"));
  EXPECT_THAT(refused(zero, PartText(-4, 0, 0).Whole()), HasSubstr("rank -4"));
  EXPECT_THAT(refused(zero, "[\n" + std::string(2 << 20, 'x')), HasSubstr("a line of more than"));
  EXPECT_FALSE(std::filesystem::exists(out));
}

TEST(TraceMerge, KnowsWhosePartAFileIs) {
  const std::string path = Path("named");
  Write(path, PartText(3, 0, 0, "now").Whole());
  const auto name = ReadTracePartName(path);
  ASSERT_TRUE(name.ok()) << Message(name.status());
  EXPECT_EQ(name->rank, 3);
  EXPECT_EQ(name->run, "now");
}

// What core/trace.h writes is what is read.
TEST(TraceMerge, ReadsWhatTraceWrites) {
  const std::string path = Path("written"), out = Path("out");
  auto trace = *Trace::Create(path);
  trace->SetRank({.rank = 1, .name = "rank 1 (tp 1)", .run = "r"});
  trace->NameThread(kTraceCompute);
  trace->Flight("tp: mlp", 1000, 5000,
                Trace::ToJson({{"group", "tp"}, {"label", "mlp"}, {"bytes", 64}}));
  trace->Wait("wait", 3000, 4000, "{}");
  ASSERT_TRUE(trace->Close().ok());
  const auto merged = MergeTraces({path}, out);
  ASSERT_TRUE(merged.ok()) << Message(merged.status());
  ASSERT_EQ(merged->totals.size(), 1u);
  EXPECT_EQ(merged->totals[0].flight_ns, 4000);
  EXPECT_EQ(merged->totals[0].hidden_ns, 3000);
  EXPECT_EQ(merged->totals[0].bytes, 64);
}

}  // namespace
}  // namespace cadre
