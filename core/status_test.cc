#include "core/status.h"

#include <gtest/gtest.h>

namespace cadre {
namespace {

absl::StatusOr<int> Half(int x) {
  if (x % 2) return InvalidArgument("{} is odd", x);
  return x / 2;
}

absl::Status Quarter(int x, int* result) {
  CADRE_ASSIGN_OR_RETURN(int half, Half(x));
  CADRE_ASSIGN_OR_RETURN(*result, Half(half));
  return absl::OkStatus();
}

TEST(Status, PropagatesAndAnnotates) {
  int result = 0;
  EXPECT_TRUE(Quarter(8, &result).ok());
  EXPECT_EQ(result, 2);
  absl::Status failed = Quarter(6, &result);
  EXPECT_EQ(Message(failed), "3 is odd");
  EXPECT_EQ(Message(Annotate(failed, "quarter")), "quarter: 3 is odd");
  EXPECT_EQ(Annotate(failed, "quarter").code(), absl::StatusCode::kInvalidArgument);
}

TEST(Status, CheckAborts) { EXPECT_DEATH(CADRE_CHECK(1 == 2, "one is not {}", 2), "one is not 2"); }

}  // namespace
}  // namespace cadre
