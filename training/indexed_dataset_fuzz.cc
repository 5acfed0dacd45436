// libFuzzer: any bytes as an .idx file, over a .bin of 4 KiB. Built by the preset `fuzz`.
#include "training/indexed_dataset.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint64_t kBinBytes = 4096;
  const auto index =
      cadre::TokenIndex::Parse({reinterpret_cast<const std::byte*>(data), size}, kBinBytes, "fuzz");
  if (!index.ok()) return 0;
  for (int64_t d = 0; d < index->documents(); ++d) {
    for (int64_t s = index->FirstSequence(d); s < index->FirstSequence(d + 1); ++s) {
      const auto bytes = static_cast<uint64_t>(index->Length(s)) * cadre::SizeOf(index->type());
      CADRE_CHECK(static_cast<uint64_t>(index->Pointer(s)) + bytes <= kBinBytes);
    }
  }
  return 0;
}
