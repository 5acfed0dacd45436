#include "training/document_order.h"

#include <algorithm>
#include <limits>

namespace cadre {
namespace {

constexpr int64_t kStride = 128;

}  // namespace

DocumentOrder::DocumentOrder(const DocumentSource& source, const RandomKey& key, int64_t epoch,
                             bool shuffle)
    : source_(&source) {
  CADRE_CHECK(source.size() <= std::numeric_limits<uint32_t>::max(), "{}", source.name());
  documents_.reserve(source.size());
  for (int64_t d = 0; d < source.size(); ++d) {
    if (source.Length(d) > 0) documents_.push_back(static_cast<uint32_t>(d));
  }
  if (shuffle) {
    // Fisher-Yates; the high half of a 128-bit product maps a draw to [0, i].
    for (uint64_t i = documents_.size(); i-- > 1;) {
      uint64_t draw = key.U64(i, static_cast<uint64_t>(epoch));
      uint64_t j = static_cast<uint64_t>((static_cast<unsigned __int128>(draw) * (i + 1)) >> 64);
      std::swap(documents_[i], documents_[j]);
    }
  }
  for (int64_t p = 0; p < size(); ++p) {
    if (p % kStride == 0) starts_.push_back(tokens_);
    tokens_ += source.Length(documents_[p]);
  }
}

int64_t DocumentOrder::Bytes(int64_t documents) {
  return documents * static_cast<int64_t>(sizeof(uint32_t)) +
         documents / kStride * static_cast<int64_t>(sizeof(int64_t));
}

DocumentOrder::Place DocumentOrder::Find(int64_t token) const {
  CADRE_CHECK(token >= 0 && token < tokens_, "token {} of {}", token, tokens_);
  auto above = std::upper_bound(starts_.begin(), starts_.end(), token);
  int64_t stride = above - starts_.begin() - 1;
  Place place{.position = stride * kStride, .offset = token - starts_[stride]};
  while (place.offset >= source_->Length(documents_[place.position])) {
    place.offset -= source_->Length(documents_[place.position]);
    ++place.position;
  }
  return place;
}

}  // namespace cadre
