// SampleStream: the training data as an endless row of samples, without any state but an index.
//
// Of each source the epochs' document orders are laid end to end; row r of the source is the
// seq_len + 1 tokens from r × seq_len on (the last token is only a target, and is the next row's
// first input). Sample i is a row of the source that the blend picks for i. So a sample is a pure
// function of (seed, i), every token of every document is an input exactly once an epoch, and the
// cursor of a run is its step: step s takes samples s·G to s·G + G − 1.
//
// Inside a row attention stays within a document: each document, or part of one, is a sequence
// whose positions start at 0. No target crosses a document's end.
//
//   CADRE_ASSIGN_OR_RETURN(auto stream, SampleStream::Create(sources, {.seq_len = 1024}));
//   auto loss_tokens = stream.LossTokens(step * G, G);   // before the first forward
//   PackedBatch batch;
//   for (int64_t i = 0; i < micro_batch; ++i) {
//     CADRE_RETURN_IF_ERROR(stream.Append(step * G + i, &batch));
//   }
//
// One thread at a time (the orders of the current epochs are cached).
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "core/status.h"
#include "training/blend.h"
#include "training/document_order.h"
#include "training/document_source.h"

namespace cadre {

// Rows put end to end, T tokens in S sequences.
struct PackedBatch {
  std::vector<int32_t> ids;          // [T]
  std::vector<int32_t> positions;    // [T], from 0 in each sequence
  std::vector<int32_t> targets;      // [T], the next token of the document; -1: no loss
  std::vector<int32_t> offsets;      // [S + 1], first token of each sequence, then T
  std::vector<int32_t> row_offsets;  // [rows + 1], first token of each sample, then T
  int64_t loss_tokens = 0;           // targets that are not -1
};

struct WeightedSource {
  std::shared_ptr<const DocumentSource> documents;
  double weight = 1.0;
};

struct SampleStreamOptions {
  int64_t seq_len = 1024;
  uint64_t seed = 1234;
  bool shuffle = true;     // off: documents in file order in every epoch
  int64_t vocab_size = 0;  // ids must be below it; 0: any id
};

class SampleStream {
 public:
  // kInvalidArgument: no sources, a source with fewer tokens than a row, impossible weights.
  static absl::StatusOr<SampleStream> Create(std::vector<WeightedSource> sources,
                                             const SampleStreamOptions& options);

  // Appends sample `i` as one row of seq_len tokens. kDataLoss where stored tokens are broken or no
  // ids of the vocabulary; the batch is of no use then.
  absl::Status Append(int64_t i, PackedBatch* batch);

  // Loss tokens of samples [begin, begin + count). Reads lengths only, and masks where a source has
  // them.
  absl::StatusOr<int64_t> LossTokens(int64_t begin, int64_t count);

  // Tokens of one pass over every source that has a weight.
  int64_t epoch_tokens() const;
  // Whole rows in one pass over every source that has a weight, at least 1: the samples that an
  // evaluation of the whole split takes.
  int64_t epoch_rows() const;
  // Bytes of the document orders that reading will build and keep.
  int64_t order_bytes() const;

 private:
  static constexpr size_t kKeptOrders = 2;
  struct Source {
    std::shared_ptr<const DocumentSource> documents;
    RandomKey key;
    int64_t tokens;  // of an epoch
    bool used;
    // The newest kKeptOrders epochs' orders; rows of one source walk forward, and one row may touch
    // two.
    std::deque<std::pair<int64_t, DocumentOrder>> orders;
  };
  // Tokens of one document inside a row.
  struct Piece {
    int64_t document;
    int64_t begin;
    int64_t length;
  };

  SampleStream(Blend blend, const SampleStreamOptions& options)
      : blend_(std::move(blend)), options_(options) {}
  const DocumentOrder& Order(Source& source, int64_t epoch);
  // The seq_len + 1 tokens of the row; returns its source.
  Source& Pieces(int64_t i, std::vector<Piece>* pieces);
  absl::Status AppendPiece(const DocumentSource& documents, const Piece& piece, bool last,
                           PackedBatch* batch);

  Blend blend_;
  SampleStreamOptions options_;
  std::vector<Source> sources_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> ids_;
  std::vector<uint8_t> mask_;
};

}  // namespace cadre
