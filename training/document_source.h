// Documents of token ids: what a sample stream reads. Implementations may be read from any number
// of threads at once.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"

namespace cadre {

class DocumentSource {
 public:
  virtual ~DocumentSource() = default;

  // Stands for the source in messages, usually a path.
  virtual const std::string& name() const = 0;
  virtual int64_t size() const = 0;  // documents
  virtual int64_t Length(int64_t document) const = 0;
  // Fills `ids` with the tokens from `begin` on; begin + ids.size() is at most the length.
  // kDataLoss where the stored data are broken.
  virtual absl::Status Read(int64_t document, int64_t begin, std::span<int32_t> ids) const = 0;
  // Whether tokens carry a mask; without one every token counts in the loss.
  virtual bool masked() const { return false; }
  // 1 where predicting the token counts in the loss. Only called where masked().
  virtual absl::Status ReadMask(int64_t document, int64_t begin, std::span<uint8_t> mask) const {
    return absl::OkStatus();
  }
};

// Documents in memory; for small sets and tests.
class MemoryDocuments final : public DocumentSource {
 public:
  explicit MemoryDocuments(std::string name) : name_(std::move(name)) {}

  // `mask` is empty (all documents) or as long as `ids` (all documents).
  void Add(std::vector<int32_t> ids, std::vector<uint8_t> mask = {});

  const std::string& name() const override { return name_; }
  int64_t size() const override { return static_cast<int64_t>(ids_.size()); }
  int64_t Length(int64_t document) const override;
  absl::Status Read(int64_t document, int64_t begin, std::span<int32_t> ids) const override;
  bool masked() const override { return masked_; }
  absl::Status ReadMask(int64_t document, int64_t begin, std::span<uint8_t> mask) const override;

 private:
  std::string name_;
  std::vector<std::vector<int32_t>> ids_;
  std::vector<std::vector<uint8_t>> masks_;
  bool masked_ = false;
};

struct DocumentSplit {
  std::shared_ptr<const DocumentSource> train;
  std::shared_ptr<const DocumentSource> validation;
};

// Holds out the last `fraction` of the documents, at least one. kInvalidArgument where fewer than
// two documents leave nothing to train on.
absl::StatusOr<DocumentSplit> SplitDocuments(std::shared_ptr<const DocumentSource> source,
                                             double fraction);

}  // namespace cadre
