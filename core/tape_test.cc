#include "core/tape.h"

#include <gtest/gtest.h>

#include <string>

#include "core/host_allocator.h"

namespace cadre {
namespace {

void AddFloats(Context& ctx, Tensor& into, const Tensor& add) {
  Tensor a = into;
  if (a.storage().use_count() > 2) into = ctx.Empty(a.shape(), a.dtype());
  for (int64_t i = 0; i < a.numel(); ++i) {
    into.data<float>()[i] = a.data<float>()[i] + add.data<float>()[i];
  }
}

// y = w * x on one element, with separate closures.
Var Multiply(Context& ctx, const Var& x, ParamId w, std::string* log) {
  LeasedWeight weight(ctx, w, Lease::kForward);
  Var y{ctx.Empty({1}, DType::kF32), ctx.tape->NewSlot()};
  *y.value.data<float>() = *x.value.data<float>() * *weight.tensor().data<float>();
  SlotId xs = ctx.tape->SlotToSave(x), ys = y.slot;
  ctx.tape->Record({.name = "multiply",
                    .inputs = {x.slot},
                    .outputs = {y.slot},
                    .saved = {{xs, x.value, Pass::kWeight}},
                    .params = {w},
                    .input_grad =
                        [=](GradContext& g) {
                          *log += "i";
                          LeasedWeight weight(g.ctx(), w, g.lease());
                          Tensor dx = g.ctx().Empty({1}, DType::kF32);
                          *dx.data<float>() =
                              *g.OutputGrad(ys).data<float>() * *weight.tensor().data<float>();
                          g.AddGrad(xs, dx);
                        },
                    .weight_grad =
                        [=](GradContext& g) {
                          *log += "w";
                          *g.ctx().parameters->Gradient(w).data<float>() +=
                              *g.OutputGrad(ys).data<float>() * *g.Read(xs).data<float>();
                        }});
  return y;
}

class TapeTest : public ::testing::Test {
 protected:
  TapeTest() {
    w_ = store_.Add({.name = "w", .shape = {1}});
    u_ = store_.Add({.name = "u", .shape = {1}, .layer = 0});
    store_.Allocate(allocator_, DType::kF32, {.gradients = true});
    *store_.Acquire(w_, Lease::kForward).data<float>() = 3;
    *store_.Acquire(u_, Lease::kForward).data<float>() = 5;
    store_.set_bucket_ready([this](int bucket, bool) { log_ += std::to_string(bucket); });
    x_ = {ctx_.Empty({1}, DType::kF32), tape_.NewSlot()};
    *x_.value.data<float>() = 2;
    tape_.KeepGrad(x_.slot);
  }

  Tensor One() {
    Tensor one = ctx_.Empty({1}, DType::kF32);
    *one.data<float>() = 1;
    return one;
  }

  HostAllocator allocator_;
  ParameterStore store_;
  Tape tape_{&AddFloats};
  Context ctx_{.allocator = &allocator_, .parameters = &store_, .tape = &tape_};
  ParamId w_, u_;
  Var x_;
  std::string log_;
};

TEST_F(TapeTest, WeightGradientsCanWait) {
  Var z = Multiply(ctx_, Multiply(ctx_, x_, w_, &log_), u_, &log_);
  tape_.Seed(z.slot, One());
  tape_.BackwardInputs(ctx_);
  EXPECT_EQ(log_, "ii");
  EXPECT_EQ(*tape_.Grad(ctx_, x_.slot).data<float>(), 15);
  EXPECT_GT(tape_.saved_bytes(), 0u);
  const size_t before = allocator_.usage().live_bytes;
  EXPECT_EQ(*tape_.TakeGrad(ctx_, x_.slot).data<float>(), 15);
  EXPECT_LT(allocator_.usage().live_bytes, before);
  tape_.BackwardWeights(ctx_);
  EXPECT_EQ(log_, "iiw1w0");
  EXPECT_EQ(tape_.saved_bytes(), 0u);
  EXPECT_EQ(*store_.Gradient(w_).data<float>(), 10);
  EXPECT_EQ(*store_.Gradient(u_).data<float>(), 6);
}

TEST_F(TapeTest, InterleavedPassGivesTheSame) {
  Var z = Multiply(ctx_, Multiply(ctx_, x_, w_, &log_), u_, &log_);
  tape_.Seed(z.slot, One());
  tape_.Backward(ctx_);
  EXPECT_EQ(log_, "iw1iw0");
  EXPECT_EQ(*store_.Gradient(w_).data<float>(), 10);
}

TEST_F(TapeTest, UnreachedNodesStillReport) {
  Var y = Multiply(ctx_, x_, w_, &log_);
  Multiply(ctx_, y, u_, &log_);
  tape_.Seed(y.slot, One());
  tape_.Backward(ctx_);
  EXPECT_EQ(log_, "1iw0");
  EXPECT_EQ(*store_.Gradient(u_).data<float>(), 0);
}

TEST_F(TapeTest, DeferredSlotsAreProducedAtTheirFirstRead) {
  Var y = Multiply(ctx_, x_, w_, &log_);
  tape_.Defer(x_.slot, [this](Context&) {
    log_ += "fetch ";
    return x_.value;
  });
  tape_.SeedDeferred(y.slot, [this](Context&) {
    log_ += "await ";
    return One();
  });
  tape_.Backward(ctx_);
  EXPECT_EQ(log_, "iawait wfetch 0");
  EXPECT_EQ(*store_.Gradient(w_).data<float>(), 2);
}

TEST_F(TapeTest, DeferredGradientsAreAddedInTheOrderOfTheirCalls) {
  Var y = Multiply(ctx_, x_, w_, &log_);
  for (const char* name : {"first ", "second "}) {
    tape_.SeedDeferred(y.slot, [this, name](Context&) {
      log_ += name;
      return One();
    });
  }
  tape_.Seed(y.slot, One());
  tape_.Backward(ctx_);
  EXPECT_EQ(log_, "ifirst second w0");
  EXPECT_EQ(*store_.Gradient(w_).data<float>(), 6);
}

// What is recorded in a place runs, going backwards, after all that was recorded since.
TEST_F(TapeTest, APlaceIsFilledLater) {
  const int place = tape_.ReservePlace();
  Multiply(ctx_, x_, u_, &log_);
  Var y;
  {
    Tape::Filling fill(tape_, place);
    y = Multiply(ctx_, x_, w_, &log_);
  }
  Var z = Multiply(ctx_, y, u_, &log_);
  store_.ExpectReports(u_, 2);
  tape_.Seed(z.slot, One());
  tape_.Backward(ctx_);
  // The product of nobody's reports alone: u's bucket is complete between the two others.
  EXPECT_EQ(log_, "iw1iw0");
  EXPECT_EQ(*tape_.Grad(ctx_, x_.slot).data<float>(), 15);
  EXPECT_EQ(*store_.Gradient(u_).data<float>(), 6);
}

TEST_F(TapeTest, ASourceMayMakeSlots) {
  Var y = Multiply(ctx_, x_, w_, &log_);
  tape_.Defer(x_.slot, [this](Context&) {
    for (int i = 0; i < 1000; ++i) tape_.NewSlot();
    return x_.value;
  });
  tape_.Seed(y.slot, One());
  tape_.Backward(ctx_);
  EXPECT_EQ(*store_.Gradient(w_).data<float>(), 2);
}

}  // namespace
}  // namespace cadre
