#include "serving/step_message.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace cadre {
namespace {

constexpr uint64_t kMagic = 0x3170657473656461;  // "adestep1"

// Every field of a message, in the order of its bytes; Archive's call operator writes or reads one.
template <typename Table, typename Archive>
void VisitTable(Table& table, Archive&& archive) {
  archive(table.stride);
  archive(table.blocks);
  archive(table.context_lengths);
  archive(table.slots);
}

template <typename Plan, typename Archive>
void VisitPlan(Plan& plan, Archive&& archive) {
  archive(plan.copies);
  archive(plan.ids);
  archive(plan.positions);
  archive(plan.offsets);
  archive(plan.sample_rows);
  archive(plan.scored);
  archive(plan.pooled);
  archive.Tables(plan.tables);
}

template <typename Message, typename Archive>
void VisitMessage(Message& message, Archive&& archive) {
  archive(message.kind);
  archive(message.number);
  archive(message.weight_version);
  archive(message.sleep_level);
  archive.Plans(message.plans);
}

class Writer {
 public:
  template <typename T>
  void operator()(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    Append(&value, sizeof(T));
  }
  template <typename T>
  void operator()(const std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    (*this)(static_cast<uint64_t>(values.size()));
    Append(values.data(), values.size() * sizeof(T));
  }
  void Tables(const std::vector<KvTable>& tables) {
    (*this)(static_cast<uint64_t>(tables.size()));
    for (const KvTable& table : tables) VisitTable(table, *this);
  }
  void Plans(const std::vector<StepPlan>& plans) {
    (*this)(static_cast<uint64_t>(plans.size()));
    for (const StepPlan& plan : plans) VisitPlan(plan, *this);
  }
  std::vector<std::byte> Take() { return std::move(bytes_); }

 private:
  void Append(const void* data, size_t size) {
    const auto* begin = static_cast<const std::byte*>(data);
    bytes_.insert(bytes_.end(), begin, begin + size);
  }
  std::vector<std::byte> bytes_;
};

// After the first field that is not there nothing more is read.
class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}

  template <typename T>
  void operator()(T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    Take(&value, sizeof(T));
  }
  template <typename T>
  void operator()(std::vector<T>& values) {
    static_assert(std::is_trivially_copyable_v<T>);
    const uint64_t count = Count(sizeof(T));
    values.resize(count);
    Take(values.data(), count * sizeof(T));
  }
  void Tables(std::vector<KvTable>& tables) {
    // A table is at least its stride and three counts.
    tables.resize(Count(4 * sizeof(uint64_t)));
    for (KvTable& table : tables) VisitTable(table, *this);
  }
  void Plans(std::vector<StepPlan>& plans) {
    // A plan is at least eight counts.
    plans.resize(Count(8 * sizeof(uint64_t)));
    for (StepPlan& plan : plans) VisitPlan(plan, *this);
  }
  bool whole() const { return ok_ && left_.empty(); }

 private:
  // Of elements that can be there at all.
  uint64_t Count(size_t size) {
    uint64_t count = 0;
    (*this)(count);
    if (count > left_.size() / size) ok_ = false;
    return ok_ ? count : 0;
  }
  void Take(void* data, size_t size) {
    if (!ok_ || size > left_.size()) {
      ok_ = false;
      return;
    }
    if (size > 0) std::memcpy(data, left_.data(), size);
    left_ = left_.subspan(size);
  }

  std::span<const std::byte> left_;
  bool ok_ = true;
};

// kDataLoss with the first value outside [0, bound), if any.
template <typename T>
absl::Status CheckRange(const char* what, const std::vector<T>& values, int64_t bound) {
  for (const T value : values) {
    if (value >= 0 && static_cast<int64_t>(value) < bound) continue;
    return DataLoss("step: {} {}, allowed are 0 to {}", what, static_cast<int64_t>(value),
                    bound - 1);
  }
  return absl::OkStatus();
}

absl::Status CheckTable(const KvTable& table, const StepPlan& plan, const StepBounds& bounds) {
  const size_t sequences = plan.offsets.size() - 1;
  // Bounded first, so that the product cannot overflow.
  if (table.stride < 1 || table.stride > bounds.blocks ||
      table.context_lengths.size() != sequences ||
      table.blocks.size() != sequences * static_cast<size_t>(table.stride) ||
      table.slots.size() != plan.ids.size()) {
    return DataLoss(
        "step: a table of {} blocks in rows of {}, {} lengths and {} slots for {} "
        "sequences of {} tokens",
        table.blocks.size(), table.stride, table.context_lengths.size(), table.slots.size(),
        sequences, plan.ids.size());
  }
  CADRE_RETURN_IF_ERROR(CheckRange("block", table.blocks, bounds.blocks));
  CADRE_RETURN_IF_ERROR(CheckRange("slot", table.slots, bounds.blocks * bounds.block_size));
  for (size_t s = 0; s < sequences; ++s) {
    const int64_t tokens = plan.offsets[s + 1] - plan.offsets[s];
    const int64_t length = table.context_lengths[s];
    if (length >= tokens && length <= table.stride * bounds.block_size) continue;
    return DataLoss("step: sequence {} has {} tokens in a context of {}, in {} blocks of {}", s,
                    tokens, length, table.stride, bounds.block_size);
  }
  return absl::OkStatus();
}

absl::Status CheckRows(const StepPlan& plan) {
  CADRE_RETURN_IF_ERROR(CheckRange("row", plan.sample_rows, plan.tokens()));
  for (const auto* ranges : {&plan.scored, &plan.pooled}) {
    for (const RowRange& rows : *ranges) {
      if (rows.begin >= 0 && rows.count > 0 && rows.begin <= plan.tokens() &&
          rows.count <= plan.tokens() - rows.begin) {
        continue;
      }
      return DataLoss("step: {} rows from {} of {} tokens", rows.count, rows.begin, plan.tokens());
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::vector<std::byte> EncodeStep(const StepMessage& message) {
  Writer writer;
  writer(kMagic);
  VisitMessage(message, writer);
  return writer.Take();
}

absl::StatusOr<StepMessage> DecodeStep(std::span<const std::byte> bytes) {
  Reader reader(bytes);
  StepMessage message;
  uint64_t magic = 0;
  reader(magic);
  VisitMessage(message, reader);
  const bool level = message.sleep_level >= 0 && message.sleep_level <= 2;
  const bool kind = message.kind >= StepKind::kRun && message.kind <= StepKind::kWake;
  if (magic != kMagic || !reader.whole() || !kind || !level) {
    return DataLoss("{} bytes of rank 0 are no step", bytes.size());
  }
  return message;
}

absl::Status CheckStep(const StepPlan& plan, const StepBounds& bounds) {
  for (const KvCopy& copy : plan.copies) {
    const bool inside =
        copy.from >= 0 && copy.to >= 0 && std::max(copy.from, copy.to) < bounds.blocks;
    if (inside && copy.from != copy.to) continue;
    return DataLoss("step: a copy of block {} to {} of {}", copy.from, copy.to, bounds.blocks);
  }
  const auto tokens = static_cast<int64_t>(plan.ids.size());
  const auto& offsets = plan.offsets;
  if (plan.positions.size() != plan.ids.size() || offsets.empty() || offsets.front() != 0 ||
      offsets.back() != tokens || !std::ranges::is_sorted(offsets)) {
    return DataLoss("step: {} ids, {} positions and {} offsets do not fit", plan.ids.size(),
                    plan.positions.size(), offsets.size());
  }
  CADRE_RETURN_IF_ERROR(CheckRange("id", plan.ids, bounds.vocabulary));
  CADRE_RETURN_IF_ERROR(CheckRange("position", plan.positions, bounds.positions));
  if (plan.tables.size() != 1 && plan.tables.size() != static_cast<size_t>(bounds.layers)) {
    return DataLoss("step: {} tables for {} layers", plan.tables.size(), bounds.layers);
  }
  for (const KvTable& table : plan.tables) {
    CADRE_RETURN_IF_ERROR(CheckTable(table, plan, bounds));
  }
  return CheckRows(plan);
}

}  // namespace cadre
