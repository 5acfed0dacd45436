// DocumentOrder: the documents of one source in the order of one epoch, seen as one run of tokens.
// The order is a permutation that depends on (seed, source, epoch) alone. Documents without tokens
// take no part.
//
// Memory: four bytes a document and eight for every 128th. Immutable; any thread may read.
#pragma once

#include <cstdint>
#include <vector>

#include "core/random.h"
#include "training/document_source.h"

namespace cadre {

class DocumentOrder {
 public:
  // The source outlives the order and has under 2^32 documents.
  DocumentOrder(const DocumentSource& source, const RandomKey& key, int64_t epoch, bool shuffle);

  struct Place {
    int64_t position = 0;  // in the order
    int64_t offset = 0;    // token inside the document
  };

  // Where token `token` of the epoch lies; 0 <= token < tokens().
  Place Find(int64_t token) const;
  int64_t size() const { return static_cast<int64_t>(documents_.size()); }
  int64_t document(int64_t position) const { return documents_[position]; }
  int64_t tokens() const { return tokens_; }
  // Memory of an order of so many documents.
  static int64_t Bytes(int64_t documents);

 private:
  const DocumentSource* source_;
  std::vector<uint32_t> documents_;
  std::vector<int64_t> starts_;  // first token of every 128th position
  int64_t tokens_ = 0;
};

}  // namespace cadre
