// Communicator: collectives among a group of ranks. Asynchronous: each returns a Work, pins its
// tensors until it is done and moves on by itself while the caller computes.
//
//   WorkPtr work = tp.AllReduce(partial, ReduceOp::kSum, {.what = "mlp", .layer = 3});
//   ...
//   CADRE_RETURN_IF_ERROR(work->Wait());
//
// All ranks of a group call the same operations in the same order with the same shapes; different
// groups are independent. Every element of a reduction is summed in rank order, in f32 (f64 for
// f64, the type itself for integers), and rounded once, so the result depends on neither transport
// nor size nor timing, and is the same on every rank. (Not NCCL's, which promises no order.)
//
// A communicator is used by one thread; Work::Wait and done may be called from any thread of the
// rank. A dead peer or a time-out ends all operations of all groups of the world with one error
// that names rank, operation and label.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"

namespace cadre {

enum class ReduceOp : uint8_t { kSum, kMax, kAverage };  // average: floating types only

// What an operation is for, in errors, the flight recorder and traces: "layer 3 mlp".
struct OpLabel {
  std::string_view what;
  int layer = -1;
  int bucket = -1;  // of the parameter store, where it is one's
};
std::string ToString(const OpLabel& label);

class Work {
 public:
  virtual ~Work() = default;

  // Blocks until it is done; the same answer at every call. On a GPU it makes the compute stream
  // wait instead (nccl_communicator.h). kUnavailable: a peer is lost; kDeadlineExceeded: the
  // group's time-out passed.
  virtual absl::Status Wait() = 0;
  // Whether it has ended, well or not.
  virtual bool done() const = 0;
};
using WorkPtr = std::shared_ptr<Work>;

// Shapes: n = size(). Tensors lie on the communicator's device and are contiguous.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual const std::string& name() const = 0;  // "tp"
  virtual int rank() const = 0;                 // in the group
  virtual int size() const = 0;
  virtual const std::vector<int>& ranks() const = 0;  // of the world, in the group's order

  // In place.
  virtual WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) = 0;
  // input: n times output's elements; this rank gets the rank-th part.
  virtual WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                                const OpLabel& label) = 0;
  // Rank r gets rows[r] of input's dimension 0; the same `rows` on every rank. In both, output may
  // be this rank's part of input.
  virtual WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output,
                                 std::span<const int64_t> rows, ReduceOp op,
                                 const OpLabel& label) = 0;
  // output: n times input's elements, in rank order. input may be its own place in output, here and
  // in AllGatherV.
  virtual WorkPtr AllGather(const Tensor& input, const Tensor& output, const OpLabel& label) = 0;
  // Dimension 0 has rows[r] rows from rank r; the same `rows` on every rank.
  virtual WorkPtr AllGatherV(const Tensor& input, const Tensor& output,
                             std::span<const int64_t> rows, const OpLabel& label) = 0;
  // Dimension 0 is cut in n equal parts; part r goes to rank r.
  virtual WorkPtr AllToAll(const Tensor& input, const Tensor& output, const OpLabel& label) = 0;
  // send_rows[r] rows of dimension 0 go to rank r, receive_rows[r] come from it.
  virtual WorkPtr AllToAllV(const Tensor& input, std::span<const int64_t> send_rows,
                            const Tensor& output, std::span<const int64_t> receive_rows,
                            const OpLabel& label) = 0;
  // In place; `root` is a rank of the group.
  virtual WorkPtr Broadcast(const Tensor& buffer, int root, const OpLabel& label) = 0;
  // Point to point. Sends to a peer match its receives in order, apart from the collectives.
  virtual WorkPtr Send(const Tensor& tensor, int to, const OpLabel& label) = 0;
  virtual WorkPtr Receive(const Tensor& tensor, int from, const OpLabel& label) = 0;
  virtual WorkPtr Barrier(const OpLabel& label) = 0;
};

}  // namespace cadre
