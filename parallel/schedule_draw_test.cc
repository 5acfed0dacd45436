#include "parallel/schedule_draw.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "proto/parallel_config.pb.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

struct Drawn {
  Schedule schedule;
  Simulation simulation;

  explicit Drawn(const ScheduleSpec& spec, const ActionDurations& durations = {}) {
    auto made = MakeSchedule(spec);
    CADRE_CHECK(made.ok(), "{}", Message(made.status()));
    schedule = *std::move(made);
    auto simulated = SimulateSchedule(schedule, durations);
    CADRE_CHECK(simulated.ok(), "{}", Message(simulated.status()));
    simulation = *std::move(simulated);
  }
  std::string Text(const DrawOptions& options = {}) const {
    return DrawText(schedule, simulation, options);
  }
};

size_t Count(const std::string& text, const std::string& part) {
  size_t count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

const ScheduleSpec kOneF = {config::PIPELINE_SCHEDULE_1F1B, 2, 1, 3};
const ScheduleSpec kZbV = {config::PIPELINE_SCHEDULE_ZB_V, 2, 2, 3};

TEST(ScheduleDraw, OneRowARank) {
  EXPECT_EQ(Drawn(kOneF).Text(),
            "rank 0 F0-F1-......B0----F2-B1----...B2----\n"
            "rank 1 ...F0-B0----F1-B1----F2-B2----......\n"
            "F forward   B backward   . idle\n");
}

TEST(ScheduleDraw, StagesOfARankHaveLetters) {
  EXPECT_EQ(Drawn(kZbV).Text(),
            "rank 0 F0a-F1a-F2a-F0b-I0b-W0b-F1b-I1b-W1b-I0a-W0a-F2b-I2b-W2b-I1a-W1a-I2a-W2a-....\n"
            "rank 1 ....F0a-F0b-F1a-F1b-I0b-W0b-F2a-I0a-W0a-F2b-I1b-W1b-I1a-I2b-I2a-W1a-W2b-W2a-\n"
            "F forward   I gradient of the input   W gradient of the weights   . idle   a, b: the "
            "rank's first, second stage\n");
}

TEST(ScheduleDraw, FitsTheColumnsThatThereAre) {
  const Drawn drawn({config::PIPELINE_SCHEDULE_1F1B, 4, 1, 64});
  for (const int columns : {1, 8, 40, 80, 300}) {
    std::istringstream rows(drawn.Text({.columns = columns}));
    std::string row;
    for (int rank = 0; rank < 4; ++rank) {
      std::getline(rows, row);
      EXPECT_LE(static_cast<int>(row.size()), std::max(columns, 8)) << row;
    }
  }
  EXPECT_THAT(drawn.Text({.columns = 80}), Not(HasSubstr("F1"))) << "a cut number misleads";
}

TEST(ScheduleDraw, ColoursOnlyWhereTheyAreAsked) {
  EXPECT_THAT(Drawn(kOneF).Text(), Not(HasSubstr("\x1b")));
  const std::string coloured = Drawn(kOneF).Text({.colour = true});
  EXPECT_EQ(Count(coloured, "\x1b[0m"), 2 * 6 + 2) << "boxes and legend";
}

TEST(ScheduleDraw, SvgShowsEveryComputationOnceAndStaysInItsPage) {
  const Drawn drawn(kZbV);
  const std::string svg = DrawSvg(drawn.schedule, drawn.simulation);
  EXPECT_EQ(Count(svg, "<g><title>"), 3u * 4 * 3);
  EXPECT_EQ(Count(svg, "backward_weight stage 3 microbatch 2: "), 1u);
  EXPECT_THAT(svg, HasSubstr("zb_v: 2 ranks x 2 stages, 3 microbatches; makespan 9.5, ideal 9, "
                             "bubble 5.3 %"));
  EXPECT_THAT(svg, HasSubstr("prefers-color-scheme:dark"));
  EXPECT_THAT(svg, Not(HasSubstr("href")));
}

TEST(ScheduleDraw, LongSchedulesKeepAWidthThatCanBeOpened) {
  const Drawn drawn({config::PIPELINE_SCHEDULE_1F1B, 2, 1, 5000}, {.forward = 1e-6});
  const std::string svg = DrawSvg(drawn.schedule, drawn.simulation);
  double width = 0;
  ASSERT_EQ(std::sscanf(svg.c_str(), "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %lf",
                        &width),
            1);
  EXPECT_LT(width, 4000);
}

}  // namespace
}  // namespace cadre
