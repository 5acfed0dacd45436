#include "serving/serving_ranks.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "parallel/agree.h"
#include "parallel/control_group.h"

namespace cadre {
namespace {

// One broadcast does for a step that decodes; a longer message takes a second one.
constexpr int64_t kFirstBytes = 16 << 10;
constexpr int64_t kHead = sizeof(int64_t);
constexpr int64_t kMaxMessageBytes = int64_t{1} << 30;
constexpr OpLabel kStepLabel = {"step"};

std::vector<int> AllOf(const World& world) {
  std::vector<int> all(static_cast<size_t>(world.size()));
  std::iota(all.begin(), all.end(), 0);
  return all;
}

}  // namespace

ServingRanks::ServingRanks(World& world, const Layout& layout, FlightRecorder* recorder)
    : ranks_on_host_(static_cast<int>(world.local_ranks().size())),
      mesh_(&world, layout),
      control_(world.NewGroup(kControlGroup, AllOf(world), kControlTimeout)),
      groups_(mesh_.Groups()),
      first_(Tensor::Zeros(allocator_, {kFirstBytes}, DType::kU8)) {
  groups_.recorder = recorder;
}

absl::Status ServingRanks::Agree(const absl::Status& mine, const OpLabel& label) {
  return cadre::Agree(*mesh_.checkpoint(), mine, label);
}

absl::StatusOr<int64_t> ServingRanks::Least(int64_t mine, const OpLabel& label) {
  const int64_t negative = -mine;
  const Tensor most = Tensor::Of<int64_t>(allocator_, {1}, std::span(&negative, 1));
  CADRE_RETURN_IF_ERROR(mesh_.checkpoint()->AllReduce(most, ReduceOp::kMax, label)->Wait());
  return -*most.data<int64_t>();
}

absl::StatusOr<std::vector<int64_t>> ServingRanks::SumCounts(std::span<const int64_t> own) {
  std::vector<int64_t> counts(own.size(), 0);
  if (part().tp_rank == 0) std::ranges::copy(own, counts.begin());
  const auto size = static_cast<int64_t>(counts.size());
  const Tensor sum = Tensor::Of<int64_t>(allocator_, {size}, std::span<const int64_t>(counts));
  CADRE_RETURN_IF_ERROR(mesh_.world()->AllReduce(sum, ReduceOp::kSum, {"expert tokens"})->Wait());
  counts.assign(sum.data<int64_t>(), sum.data<int64_t>() + size);
  return counts;
}

void ServingRanks::Record(int64_t step) {
  if (groups_.recorder != nullptr) groups_.recorder->SetStep(step);
}

absl::Status ServingRanks::Tell(const StepMessage& message) {
  Record(message.number);
  const std::vector<std::byte> bytes = EncodeStep(message);
  const auto size = static_cast<int64_t>(bytes.size());
  CADRE_CHECK(size <= kMaxMessageBytes, "a step of {} bytes", size);
  const int64_t begin = std::min(size, kFirstBytes - kHead), rest = size - begin;
  std::memcpy(first_.raw(), &size, kHead);
  std::memcpy(first_.raw() + kHead, bytes.data(), static_cast<size_t>(begin));
  CADRE_RETURN_IF_ERROR(control_->Broadcast(first_, 0, kStepLabel)->Wait());
  if (rest == 0) return absl::OkStatus();
  const Tensor more = Tensor::Empty(allocator_, {rest}, DType::kU8);
  std::memcpy(more.raw(), bytes.data() + begin, static_cast<size_t>(rest));
  return control_->Broadcast(more, 0, kStepLabel)->Wait();
}

absl::StatusOr<StepMessage> ServingRanks::Hear() {
  CADRE_RETURN_IF_ERROR(control_->Broadcast(first_, 0, kStepLabel)->Wait());
  int64_t size = 0;
  std::memcpy(&size, first_.raw(), kHead);
  if (size < 0 || size > kMaxMessageBytes) {
    return DataLoss("rank 0 tells a step of {} bytes; allowed: 0 to {}", size, kMaxMessageBytes);
  }
  const int64_t begin = std::min(size, kFirstBytes - kHead), rest = size - begin;
  std::vector<std::byte> bytes(static_cast<size_t>(size));
  std::memcpy(bytes.data(), first_.raw() + kHead, static_cast<size_t>(begin));
  if (rest > 0) {
    const Tensor more = Tensor::Empty(allocator_, {rest}, DType::kU8);
    CADRE_RETURN_IF_ERROR(control_->Broadcast(more, 0, kStepLabel)->Wait());
    std::memcpy(bytes.data() + begin, more.raw(), static_cast<size_t>(rest));
  }
  CADRE_ASSIGN_OR_RETURN(StepMessage message, DecodeStep(bytes));
  Record(message.number);
  return message;
}

}  // namespace cadre
