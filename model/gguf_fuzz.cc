// libFuzzer: any bytes as a GGUF file, its config and its tokenizer. Built by the preset `fuzz`.
#include "model/gguf_model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data), size);
  const auto file = cadre::GgufFile::Parse("fuzz", bytes);
  if (!file.ok()) return 0;
  for (const cadre::GgufTensor& tensor : file->tensors()) {
    CADRE_CHECK(tensor.bytes.data() >= bytes.data() &&
                tensor.bytes.data() + tensor.bytes.size() <= bytes.data() + bytes.size());
  }
  (void)cadre::GgufConfig(*file);
  (void)cadre::GgufTokenizer(*file);
  (void)cadre::GgufChatOf(*file);
  return 0;
}
