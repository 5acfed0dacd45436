#include "core/ops/embedding.h"

#include <gtest/gtest.h>

#include "core/ops/op_check.h"

namespace cadre::ops {
namespace {

TEST(Embedding, RepeatedIdsAddTheirGradients) {
  CheckOp({.params = {{9, 70}}, .op = [](Context& ctx, auto, std::span<const ParamId> w) {
             std::vector<int32_t> ids = {3, 0, 3, 8, 3};
             return Embedding(ctx, Tensor::Of<int32_t>(*ctx.allocator, {5}, ids), w[0]);
           }});
}

TEST(Embedding, RowsHeldElsewhereAreZeroAndGetNoGradient) {
  CheckOp({.params = {{9, 70}}, .op = [](Context& ctx, auto, std::span<const ParamId> w) {
             std::vector<int32_t> ids = {3, -1, 8, -1};
             Var y = Embedding(ctx, Tensor::Of<int32_t>(*ctx.allocator, {4}, ids), w[0]);
             for (std::byte byte : std::span(y.value.Narrow(1, 1).raw(), y.value.bytes() / 4)) {
               EXPECT_EQ(byte, std::byte{0});
             }
             return y;
           }});
}

TEST(EmbeddingDeathTest, IdsOutOfRange) {
  auto run = [](int32_t id) {
    CheckOp({.params = {{4, 8}}, .op = [id](Context& ctx, auto, std::span<const ParamId> w) {
               std::vector<int32_t> ids = {id};
               return Embedding(ctx, Tensor::Of<int32_t>(*ctx.allocator, {1}, ids), w[0]);
             }});
  };
  EXPECT_DEATH(run(4), "id 4, the vocabulary is 4");
  EXPECT_DEATH(run(-2), "id -2");
}

}  // namespace
}  // namespace cadre::ops
