#include "training/indexed_documents.h"

#include <filesystem>
#include <optional>
#include <utility>

#include "training/indexed_dataset.h"

namespace cadre {
namespace {

class IndexedDocuments final : public DocumentSource {
 public:
  IndexedDocuments(std::string prefix, IndexedDataset tokens, std::optional<IndexedDataset> mask)
      : prefix_(std::move(prefix)), tokens_(std::move(tokens)), mask_(std::move(mask)) {}

  const std::string& name() const override { return prefix_; }
  int64_t size() const override { return tokens_.documents(); }
  int64_t Length(int64_t document) const override { return tokens_.DocumentLength(document); }
  absl::Status Read(int64_t document, int64_t begin, std::span<int32_t> ids) const override {
    return tokens_.ReadDocument(document, begin, ids);
  }
  bool masked() const override { return mask_.has_value(); }
  absl::Status ReadMask(int64_t document, int64_t begin, std::span<uint8_t> mask) const override {
    std::vector<int32_t> values(mask.size());
    CADRE_RETURN_IF_ERROR(mask_->ReadDocument(document, begin, values));
    for (size_t i = 0; i < mask.size(); ++i) mask[i] = values[i] != 0 ? 1 : 0;
    return absl::OkStatus();
  }

 private:
  std::string prefix_;
  IndexedDataset tokens_;
  std::optional<IndexedDataset> mask_;
};

absl::Status CheckMask(const std::string& prefix, const IndexedDataset& tokens,
                       const IndexedDataset& mask) {
  if (mask.documents() != tokens.documents()) {
    return InvalidArgument("{}: {} documents, but {} has {}", MaskPrefix(prefix), mask.documents(),
                           prefix, tokens.documents());
  }
  for (int64_t d = 0; d < tokens.documents(); ++d) {
    if (mask.DocumentLength(d) != tokens.DocumentLength(d)) {
      return InvalidArgument("{}: document {} has {} tokens, but {} in {}", MaskPrefix(prefix), d,
                             mask.DocumentLength(d), tokens.DocumentLength(d), prefix);
    }
  }
  return absl::OkStatus();
}

}  // namespace

std::string MaskPrefix(const std::string& prefix) { return prefix + ".mask"; }

absl::StatusOr<std::shared_ptr<const DocumentSource>> OpenIndexedDocuments(
    const std::string& prefix) {
  CADRE_ASSIGN_OR_RETURN(IndexedDataset tokens, IndexedDataset::Open(prefix));
  std::optional<IndexedDataset> mask;
  std::error_code error;
  if (std::filesystem::exists(MaskPrefix(prefix) + ".idx", error)) {
    CADRE_ASSIGN_OR_RETURN(mask, IndexedDataset::Open(MaskPrefix(prefix)));
    CADRE_RETURN_IF_ERROR(CheckMask(prefix, tokens, *mask));
  }
  return std::make_shared<IndexedDocuments>(prefix, std::move(tokens), std::move(mask));
}

}  // namespace cadre
