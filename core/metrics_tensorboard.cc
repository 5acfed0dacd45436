#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <chrono>
#include <utility>

#include "core/file.h"
#include "core/metrics.h"
#include "proto/tensorboard.pb.h"

namespace cadre {
namespace {

constexpr std::array<uint32_t, 256> MakeTable() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kTable = MakeTable();

void AppendLittleEndian(uint64_t value, int bytes, std::string* text) {
  for (int i = 0; i < bytes; ++i) *text += static_cast<char>(value >> (8 * i) & 0xff);
}

// TFRecord stores a rotated CRC, since a CRC of data that hold CRCs is weak.
uint32_t MaskedCrc(std::string_view bytes) {
  const uint32_t crc = Crc32c(bytes);
  return (crc >> 15 | crc << 17) + 0xa282ead8u;
}

// u64 length, its masked CRC, the data, their masked CRC.
std::string Record(const std::string& data) {
  std::string record;
  AppendLittleEndian(data.size(), 8, &record);
  AppendLittleEndian(MaskedCrc(record), 4, &record);
  record += data;
  AppendLittleEndian(MaskedCrc(data), 4, &record);
  return record;
}

double WallTime() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

}  // namespace

uint32_t Crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char c : bytes) crc = crc >> 8 ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  return ~crc;
}

absl::StatusOr<TensorBoardWriter> TensorBoardWriter::Create(const std::string& folder,
                                                            std::string_view suffix) {
  TensorBoardWriter writer;
  const double now = WallTime();
  // Two runs of one second get different names; TensorBoard orders files by name.
  for (int i = 0; i < 1000 && writer.descriptor_ < 0; ++i) {
    writer.path_ = fmt::format("{}/events.out.tfevents.{:010}.{}.{}", folder,
                               static_cast<int64_t>(now), suffix, i);
    writer.descriptor_ = open(writer.path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (writer.descriptor_ < 0 && errno != EEXIST) break;
  }
  if (writer.descriptor_ < 0) return ErrnoError(writer.path_, "cannot create", errno);
  tensorboard::Event event;
  event.set_wall_time(now);
  event.set_file_version("brain.Event:2");
  CADRE_RETURN_IF_ERROR(
      WriteAll(writer.descriptor_, writer.path_, Record(event.SerializeAsString())));
  return writer;
}

TensorBoardWriter::TensorBoardWriter(TensorBoardWriter&& other) noexcept {
  *this = std::move(other);
}

TensorBoardWriter& TensorBoardWriter::operator=(TensorBoardWriter&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

TensorBoardWriter::~TensorBoardWriter() {
  if (descriptor_ >= 0) close(descriptor_);
}

absl::Status TensorBoardWriter::Write(int64_t step, std::span<const Metric> metrics) {
  tensorboard::Event event;
  event.set_wall_time(WallTime());
  event.set_step(step);
  for (const Metric& metric : metrics) {
    tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
    value->set_tag(std::string(metric.name));
    value->set_simple_value(static_cast<float>(metric.value));
  }
  return AppendWhole(descriptor_, path_, Record(event.SerializeAsString()));
}

}  // namespace cadre
