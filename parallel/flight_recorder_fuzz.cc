// libFuzzer: any bytes over the first of a flight recorder's file, which another process wrote.
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <string>

#include "parallel/flight_recorder.h"

namespace {

// Made once: a file with records, whose bytes each run starts from.
const std::string& Valid(const std::string& path) {
  static const std::string bytes = [&path] {
    unlink(path.c_str());
    {
      auto recorder = cadre::FlightRecorder::Create(path, 3);
      CADRE_CHECK(recorder.ok());
      (*recorder)->SetStep(1);
      (*recorder)->SetActivity("forward", 2);
      (*recorder)->Begin("tp", "all_reduce", "layer 2 mlp", 7, 64);
    }
    std::ifstream file(path, std::ios::binary);
    return std::string(std::istreambuf_iterator<char>(file), {});
  }();
  return bytes;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string path = "/dev/shm/cadre-fuzz." + std::to_string(getpid());
  std::string bytes = Valid(path);
  std::copy_n(data, std::min(size, bytes.size()), bytes.begin());
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
  const auto read = cadre::ReadFlightRecord(path);
  unlink(path.c_str());
  if (!read.ok()) return 0;
  CADRE_CHECK(read->rank >= 0 && read->step >= -1 && read->layer >= -1);
  CADRE_CHECK(read->operations.size() <= cadre::FlightRecorder::kRecords);
  const auto printable = [](const std::string& text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= ' ' && c <= '~'; });
  };
  CADRE_CHECK(printable(read->activity));
  for (const cadre::OperationRecord& operation : read->operations) {
    CADRE_CHECK(printable(operation.group) && printable(operation.operation) &&
                printable(operation.label));
  }
  return 0;
}
