#include "serving/http/unknown_fields.h"

#include <gtest/gtest.h>
#include <spdlog/logger.h>
#include <spdlog/sinks/ostream_sink.h>

#include <algorithm>
#include <sstream>

namespace cadre {
namespace {

TEST(UnknownFields, AreToldOnceAndForgeNoLines) {
  std::ostringstream said;
  UnknownFields fields(std::make_shared<spdlog::logger>(
      "test", std::make_shared<spdlog::sinks::ostream_sink_mt>(said)));
  for (int i = 0; i < 2; ++i) {
    fields.Log({"top.k-2", "x\n[error] forged", "y\x1b[2J", "", std::string("z\0", 2)});
  }
  const std::string text = said.str();
  EXPECT_NE(text.find("'top.k-2'"), std::string::npos) << text;
  EXPECT_NE(text.find("not of [A-Za-z0-9_.-]"), std::string::npos) << text;
  EXPECT_EQ(text.find("forged"), std::string::npos) << text;
  EXPECT_EQ(text.find('\x1b'), std::string::npos) << text;
  EXPECT_EQ(std::ranges::count(text, '\n'), 2) << text;
  UnknownFields(nullptr).Log({"a"});
}

}  // namespace
}  // namespace cadre
