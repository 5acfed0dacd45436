// libFuzzer: any bytes as a safetensors file. Built by the preset `fuzz`.
#include "core/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto header =
      cadre::ParseSafetensorsHeader({reinterpret_cast<const std::byte*>(data), size}, "fuzz");
  if (!header.ok()) return 0;
  uint64_t at = 0;
  for (const cadre::SafetensorsEntry& entry : header->tensors) {
    CADRE_CHECK(entry.begin == at && cadre::ByteSize(entry) == entry.end - entry.begin);
    at = entry.end;
  }
  CADRE_CHECK(header->data_offset + at == size);
  return 0;
}
