#include "training/sample_stream.h"

#include <algorithm>

namespace cadre {
namespace {

int64_t CountTokens(const DocumentSource& documents) {
  int64_t tokens = 0;
  for (int64_t d = 0; d < documents.size(); ++d) tokens += documents.Length(d);
  return tokens;
}

}  // namespace

absl::StatusOr<SampleStream> SampleStream::Create(std::vector<WeightedSource> sources,
                                                  const SampleStreamOptions& options) {
  if (sources.empty()) return InvalidArgument("data.sources: empty; at least one source is needed");
  CADRE_CHECK(options.seq_len > 0, "seq_len {}", options.seq_len);
  std::vector<double> weights;
  for (const WeightedSource& source : sources) weights.push_back(source.weight);
  CADRE_ASSIGN_OR_RETURN(Blend blend, Blend::Create(weights, options.seed));
  SampleStream stream(std::move(blend), options);
  for (size_t k = 0; k < sources.size(); ++k) {
    int64_t tokens = CountTokens(*sources[k].documents);
    if (tokens < options.seq_len + 1) {
      return InvalidArgument(
          "{}: {} tokens in {} documents, but one row takes data.seq_len + 1 = {}; lower "
          "data.seq_len or add data",
          sources[k].documents->name(), tokens, sources[k].documents->size(), options.seq_len + 1);
    }
    stream.sources_.push_back({.documents = std::move(sources[k].documents),
                               .key = RandomKey(options.seed, fmt::format("shuffle/{}", k)),
                               .tokens = tokens,
                               .used = weights[k] > 0});
  }
  return stream;
}

const DocumentOrder& SampleStream::Order(Source& source, int64_t epoch) {
  for (auto& [cached, order] : source.orders) {
    if (cached == epoch) return order;
  }
  if (source.orders.size() == kKeptOrders) source.orders.pop_front();
  return source.orders
      .emplace_back(epoch, DocumentOrder(*source.documents, source.key, epoch, options_.shuffle))
      .second;
}

SampleStream::Source& SampleStream::Pieces(int64_t i, std::vector<Piece>* pieces) {
  pieces->clear();
  Blend::Pick pick = blend_.At(i);
  Source& source = sources_[pick.source];
  int64_t token = pick.row * options_.seq_len;
  int64_t epoch = token / source.tokens, wanted = options_.seq_len + 1;
  const DocumentOrder* order = &Order(source, epoch);
  DocumentOrder::Place place = order->Find(token % source.tokens);
  while (wanted > 0) {
    if (place.position == order->size()) {
      order = &Order(source, ++epoch);
      place = {};
    }
    int64_t document = order->document(place.position);
    int64_t length = std::min(wanted, source.documents->Length(document) - place.offset);
    pieces->push_back({document, place.offset, length});
    wanted -= length;
    place = {.position = place.position + 1, .offset = 0};
  }
  return source;
}

absl::Status SampleStream::AppendPiece(const DocumentSource& documents, const Piece& piece,
                                       bool last, PackedBatch* batch) {
  // The row's last token is a target only.
  int64_t inputs = piece.length - (last ? 1 : 0);
  if (inputs == 0) return absl::OkStatus();
  ids_.resize(piece.length);
  CADRE_RETURN_IF_ERROR(documents.Read(piece.document, piece.begin, ids_));
  for (int32_t id : ids_) {
    if (id >= 0 && (options_.vocab_size == 0 || id < options_.vocab_size)) continue;
    return DataLoss(
        "{}: document {} has token id {}; the model's vocabulary has {} (another tokenizer?)",
        documents.name(), piece.document, id, options_.vocab_size);
  }
  mask_.assign(piece.length, 1);
  if (documents.masked()) {
    CADRE_RETURN_IF_ERROR(documents.ReadMask(piece.document, piece.begin, mask_));
  }
  for (int64_t t = 0; t < inputs; ++t) {
    bool counts = t + 1 < piece.length && mask_[t + 1] != 0;
    batch->ids.push_back(ids_[t]);
    batch->positions.push_back(static_cast<int32_t>(t));
    batch->targets.push_back(counts ? ids_[t + 1] : -1);
    batch->loss_tokens += counts ? 1 : 0;
  }
  batch->offsets.push_back(static_cast<int32_t>(batch->ids.size()));
  return absl::OkStatus();
}

absl::Status SampleStream::Append(int64_t i, PackedBatch* batch) {
  if (batch->offsets.empty()) {
    batch->offsets.push_back(0);
    batch->row_offsets.push_back(0);
  }
  Source& source = Pieces(i, &pieces_);
  for (const Piece& piece : pieces_) {
    CADRE_RETURN_IF_ERROR(AppendPiece(*source.documents, piece, &piece == &pieces_.back(), batch));
  }
  batch->row_offsets.push_back(static_cast<int32_t>(batch->ids.size()));
  return absl::OkStatus();
}

absl::StatusOr<int64_t> SampleStream::LossTokens(int64_t begin, int64_t count) {
  int64_t total = 0;
  for (int64_t i = begin; i < begin + count; ++i) {
    Source& source = Pieces(i, &pieces_);
    for (const Piece& piece : pieces_) {
      if (!source.documents->masked()) {
        total += piece.length - 1;
      } else if (piece.length > 1) {
        mask_.resize(piece.length - 1);
        CADRE_RETURN_IF_ERROR(source.documents->ReadMask(piece.document, piece.begin + 1, mask_));
        total += std::count_if(mask_.begin(), mask_.end(), [](uint8_t m) { return m != 0; });
      }
    }
  }
  return total;
}

int64_t SampleStream::epoch_tokens() const {
  int64_t tokens = 0;
  for (const Source& source : sources_) tokens += source.used ? source.tokens : 0;
  return tokens;
}

int64_t SampleStream::order_bytes() const {
  int64_t bytes = 0;
  for (const Source& source : sources_) bytes += DocumentOrder::Bytes(source.documents->size());
  return bytes * static_cast<int64_t>(kKeptOrders);
}

int64_t SampleStream::epoch_rows() const {
  int64_t rows = 0;
  for (const Source& source : sources_) {
    rows += source.used ? (source.tokens - 1) / options_.seq_len : 0;
  }
  return rows;
}

}  // namespace cadre
