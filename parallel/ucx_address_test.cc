#include "parallel/ucx_address.h"

#include <gtest/gtest.h>

namespace cadre {
namespace {

const std::string kOwn = WrapUcxAddress(0, "a");

TEST(UcxAddressTest, GivesBackWhatWasWrapped) {
  const std::string bytes("address\0of a worker", 19);
  absl::StatusOr<std::string> unwrapped = UnwrapUcxAddress(7, WrapUcxAddress(7, bytes), kOwn);
  ASSERT_TRUE(unwrapped.ok()) << unwrapped.status();
  EXPECT_EQ(unwrapped->substr(0, bytes.size()), bytes);
  EXPECT_EQ(unwrapped->find_first_not_of('\xff', bytes.size()), std::string::npos);
}

TEST(UcxAddressTest, RefusesEveryChangedByteAndEveryLength) {
  const std::string wrapped = WrapUcxAddress(7, "address of a worker");
  for (size_t i = 0; i < wrapped.size(); ++i) {
    std::string changed = wrapped;
    changed[i] ^= 0x10;
    EXPECT_FALSE(UnwrapUcxAddress(7, changed, kOwn).ok()) << i;
    EXPECT_FALSE(UnwrapUcxAddress(7, wrapped.substr(0, i), kOwn).ok()) << i;
  }
  EXPECT_FALSE(UnwrapUcxAddress(7, wrapped + "x", kOwn).ok());
}

TEST(UcxAddressTest, SaysWhatIsWrong) {
  const auto message = [](int rank, const std::string& wrapped) {
    return Message(UnwrapUcxAddress(rank, wrapped, kOwn).status());
  };
  EXPECT_EQ(message(7, ""), "UCX address of rank 7: 0 bytes, allowed are 25 to 65536");
  EXPECT_EQ(message(7, std::string(65537, 'x')),
            "UCX address of rank 7: 65537 bytes, allowed are 25 to 65536");
  EXPECT_EQ(message(7, std::string(100, 'x')),
            "UCX address of rank 7: 100 bytes that are no address");
  EXPECT_EQ(message(7, WrapUcxAddress(6, "bytes")), "UCX address of rank 7: it is rank 6's");
  EXPECT_EQ(message(7, WrapUcxAddress(7, "bytes")),
            "UCX address of rank 7: format 0x62, this rank's UCX has 0x61");
}

}  // namespace
}  // namespace cadre
