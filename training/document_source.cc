#include "training/document_source.h"

#include <algorithm>
#include <cmath>

namespace cadre {
namespace {

// Documents [begin, begin + size) of another source.
class DocumentRange final : public DocumentSource {
 public:
  DocumentRange(std::shared_ptr<const DocumentSource> whole, int64_t begin, int64_t size,
                const std::string& what)
      : whole_(std::move(whole)),
        name_(fmt::format("{} ({})", whole_->name(), what)),
        begin_(begin),
        size_(size) {}

  const std::string& name() const override { return name_; }
  int64_t size() const override { return size_; }
  int64_t Length(int64_t document) const override { return whole_->Length(begin_ + document); }
  absl::Status Read(int64_t document, int64_t begin, std::span<int32_t> ids) const override {
    return whole_->Read(begin_ + document, begin, ids);
  }
  bool masked() const override { return whole_->masked(); }
  absl::Status ReadMask(int64_t document, int64_t begin, std::span<uint8_t> mask) const override {
    return whole_->ReadMask(begin_ + document, begin, mask);
  }

 private:
  std::shared_ptr<const DocumentSource> whole_;
  std::string name_;
  int64_t begin_;
  int64_t size_;
};

}  // namespace

void MemoryDocuments::Add(std::vector<int32_t> ids, std::vector<uint8_t> mask) {
  CADRE_CHECK(mask.empty() || mask.size() == ids.size(), "mask of {} for {} tokens", mask.size(),
              ids.size());
  bool masked = !mask.empty() || (masked_ && ids.empty());
  CADRE_CHECK(ids_.empty() || masked == masked_, "documents with and without masks in {}", name_);
  masked_ = masked;
  ids_.push_back(std::move(ids));
  masks_.push_back(std::move(mask));
}

int64_t MemoryDocuments::Length(int64_t document) const {
  return static_cast<int64_t>(ids_[document].size());
}

absl::Status MemoryDocuments::Read(int64_t document, int64_t begin, std::span<int32_t> ids) const {
  std::copy_n(ids_[document].begin() + begin, ids.size(), ids.begin());
  return absl::OkStatus();
}

absl::Status MemoryDocuments::ReadMask(int64_t document, int64_t begin,
                                       std::span<uint8_t> mask) const {
  std::copy_n(masks_[document].begin() + begin, mask.size(), mask.begin());
  return absl::OkStatus();
}

absl::StatusOr<DocumentSplit> SplitDocuments(std::shared_ptr<const DocumentSource> source,
                                             double fraction) {
  int64_t size = source->size();
  if (size < 2) {
    return InvalidArgument(
        "data.validation_fraction: {} has {} document(s); holding one out needs at least 2",
        source->name(), size);
  }
  int64_t held = std::llround(static_cast<double>(size) * fraction);
  held = std::clamp<int64_t>(held, 1, size - 1);
  return DocumentSplit{
      std::make_shared<DocumentRange>(source, 0, size - held, "training split"),
      std::make_shared<DocumentRange>(source, size - held, held, "validation split")};
}

}  // namespace cadre
