#include "parallel/nccl_calls.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/host_allocator.h"
#include "parallel/nccl_device.h"

namespace cadre {
namespace {

using ::testing::HasSubstr;
using Kind = NcclCall::Kind;

class Calls : public testing::Test {
 protected:
  Tensor Make(const Shape& shape, DType dtype = DType::kF32) {
    return Tensor::Zeros(memory_, shape, dtype);
  }
  HostAllocator memory_;
};

TEST(NcclNumbers, EveryTypeHasOne) {
  for (const DType dtype : {DType::kF64, DType::kF32, DType::kBF16, DType::kF16, DType::kI8,
                            DType::kU8, DType::kI32, DType::kI64}) {
    EXPECT_GE(NcclTypeOf(dtype), 0) << Name(dtype);
  }
  // nccl.h: ncclInt32, ncclFloat32, ncclBfloat16; ncclSum, ncclMax, ncclAvg.
  EXPECT_EQ(NcclTypeOf(DType::kI32), 2);
  EXPECT_EQ(NcclTypeOf(DType::kF32), 7);
  EXPECT_EQ(NcclTypeOf(DType::kBF16), 9);
  EXPECT_EQ(NcclReductionOf(ReduceOp::kSum), 0);
  EXPECT_EQ(NcclReductionOf(ReduceOp::kMax), 2);
  EXPECT_EQ(NcclReductionOf(ReduceOp::kAverage), 4);
}

TEST_F(Calls, EvenPartsAreOneCall) {
  const Tensor whole = Make({6, 5}), part = whole.Narrow(2, 2);
  const NcclPlace place = {1, 3};
  const std::vector<int64_t> rows = {2, 2, 2};
  NcclCall call = {.kind = Kind::kReduceScatter,
                   .from = whole.raw(),
                   .to = part.raw(),
                   .count = 10,
                   .op = ReduceOp::kAverage};
  EXPECT_EQ(ReduceScatterVCalls(place, whole, part, rows, ReduceOp::kAverage), NcclCalls{call});
  EXPECT_EQ(ReduceScatterCalls(place, whole, part, ReduceOp::kAverage), NcclCalls{call});
  call = {.kind = Kind::kAllGather, .from = part.raw(), .to = whole.raw(), .count = 10};
  EXPECT_EQ(AllGatherVCalls(place, part, whole, rows), NcclCalls{call});
  EXPECT_EQ(AllGatherCalls(place, part, whole), NcclCalls{call});
}

TEST_F(Calls, UnevenPartsAreOneCallForEachRank) {
  const Tensor whole = Make({7, 2}, DType::kBF16), part = Make({4, 2}, DType::kBF16);
  const NcclPlace place = {2, 3};
  const std::vector<int64_t> rows = {3, 0, 4};
  const NcclCalls reductions = ReduceScatterVCalls(place, whole, part, rows, ReduceOp::kMax);
  ASSERT_EQ(reductions.size(), 2u);  // rank 1 gets nothing
  EXPECT_EQ(reductions[0], (NcclCall{.kind = Kind::kReduce,
                                     .from = whole.raw(),
                                     .to = nullptr,
                                     .count = 6,
                                     .dtype = DType::kBF16,
                                     .op = ReduceOp::kMax,
                                     .peer = 0}));
  EXPECT_EQ(reductions[1].from, whole.raw() + 3 * 2 * 2);
  EXPECT_EQ(reductions[1].to, part.raw());
  EXPECT_EQ(reductions[1].count, 8u);
  EXPECT_EQ(reductions[1].peer, 2);
  const NcclCalls copies = AllGatherVCalls(place, part, whole, rows);
  ASSERT_EQ(copies.size(), 2u);
  EXPECT_EQ(copies[0].from, copies[0].to);
  EXPECT_EQ(copies[1].from, part.raw());
  EXPECT_EQ(copies[1].to, whole.raw() + 3 * 2 * 2);
}

TEST_F(Calls, AllToAllCopiesItsOwnPartAndLeavesOutEmptyOnes) {
  const Tensor input = Make({6, 3}), output = Make({5, 3});
  const std::vector<int64_t> send = {4, 2, 0}, receive = {0, 2, 3};
  const NcclCalls calls = AllToAllVCalls({1, 3}, input, send, output, receive);
  ASSERT_EQ(calls.size(), 3u);
  EXPECT_EQ(
      calls[0],
      (NcclCall{
          .kind = Kind::kCopy, .from = input.raw() + 4 * 3 * 4, .to = output.raw(), .count = 6}));
  EXPECT_EQ(calls[1], (NcclCall{.kind = Kind::kSend, .from = input.raw(), .count = 12, .peer = 0}));
  EXPECT_EQ(
      calls[2],
      (NcclCall{.kind = Kind::kReceive, .to = output.raw() + 2 * 3 * 4, .count = 9, .peer = 2}));
}

TEST_F(Calls, NothingIsNoCall) {
  const Tensor none = Make({0, 4});
  EXPECT_TRUE(AllReduceCalls(none, ReduceOp::kSum).empty());
  EXPECT_TRUE(BroadcastCalls({0, 2}, none, 1).empty());
  EXPECT_TRUE(AllGatherCalls({0, 2}, none, none).empty());
  EXPECT_TRUE(AllToAllCalls({0, 2}, none, none).empty());
  EXPECT_TRUE(SendCalls(none).empty());
  EXPECT_TRUE(ReceiveCalls(none).empty());
}

using CallsDeathTest = Calls;

TEST_F(CallsDeathTest, WhatDoesNotFitIsABrokenInvariant) {
  const Tensor a = Make({6}), b = Make({4}), ints = Make({6}, DType::kI32);
  const std::vector<int64_t> rows = {2, 3}, two = {2, 2};
  EXPECT_DEATH(AllReduceCalls(ints, ReduceOp::kAverage), "an average of i32");
  EXPECT_DEATH(ReduceScatterCalls({0, 1}, ints, ints, ReduceOp::kAverage), "an average of i32");
  EXPECT_DEATH(ReduceScatterVCalls({0, 1}, ints, ints, std::vector<int64_t>{ints.dim(0)},
                                   ReduceOp::kAverage),
               "an average of i32");
  EXPECT_DEATH(ReduceScatterCalls({0, 2}, a, b, ReduceOp::kSum), "\\[6\\] into 2 parts of \\[4\\]");
  EXPECT_DEATH(AllGatherCalls({0, 2}, a, ints), "f32 and i32");
  EXPECT_DEATH(AllGatherVCalls({0, 2}, b, a, rows), "\\[6\\] for 5 rows");
  EXPECT_DEATH(AllGatherVCalls({0, 3}, b, a, two), "2 parts for 3 ranks");
  EXPECT_DEATH(AllToAllVCalls({1, 2}, b, two, Make({5}), rows),
               "2 elements to itself, 3 from itself");
  EXPECT_DEATH(BroadcastCalls({0, 2}, a, 2), "root 2 of 2");
}

TEST(NcclId, TravelsWithItsErrorsAndRefusesOtherLengths) {
  NcclId id;
  for (size_t i = 0; i < id.size(); ++i) id[i] = static_cast<std::byte>(i);
  std::string message = WrapNcclId(id);
  ASSERT_EQ(message.size(), kNcclIdMessageBytes);
  ASSERT_TRUE(UnwrapNcclId(message).ok());
  EXPECT_EQ(*UnwrapNcclId(message), id);

  EXPECT_EQ(Message(UnwrapNcclId(message.substr(1)).status()),
            "NCCL's id came in a message of 255 bytes, 256 expected");
  message[1] = 64;
  EXPECT_EQ(Message(UnwrapNcclId(message).status()), "NCCL's id has 64 bytes, 128 expected");
  message[0] = 'x';
  EXPECT_FALSE(UnwrapNcclId(message).ok());

  const std::string failed = WrapNcclId(Internal("no \x1b[2Jdriver"));
  EXPECT_EQ(Message(UnwrapNcclId(failed).status()),
            "rank 0 of the group made no id for NCCL: no ?[2Jdriver");
  const std::string longest = WrapNcclId(Internal("{}", std::string(1000, 'a')));
  EXPECT_EQ(longest.size(), kNcclIdMessageBytes);
  EXPECT_THAT(Message(UnwrapNcclId(longest).status()), HasSubstr(std::string(254, 'a')));
}

}  // namespace
}  // namespace cadre
