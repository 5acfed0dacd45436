#include "model/read_params.h"

#include <algorithm>
#include <deque>
#include <map>
#include <optional>
#include <tuple>

#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "core/ops/quantize.h"
#include "core/read_ahead.h"
#include "core/tape.h"
#include "model/param_layout.h"

namespace cadre {
namespace {

using Found = SafetensorsFolder::Tensor;

constexpr int64_t kPiece = int64_t{1} << 20;        // elements on their way into another dtype
constexpr int64_t kReadPiece = int64_t{8} << 20;    // bytes of one read
constexpr int64_t kMostUnread = int64_t{48} << 20;  // bytes asked for and not yet used

// Elements [begin, begin + flat's) of the parameter, all of them `found`'s.
void Fill(Context& ctx, const ParamSpec& spec, const Found& found, int64_t begin,
          const Tensor& flat) {
  const DType dtype = *ToDType(found.entry->type);
  const auto width = static_cast<int64_t>(SizeOf(dtype));
  const std::byte* stored = found.Bytes().data();
  auto copy = [&](int64_t from, int64_t to, std::byte* into) {
    ForEachRun(spec, from, to, [&](const ParamRun& run) {
      CopyElements({.width = SizeOf(dtype), .count = run.count, .from_stride = run.stored_stride},
                   stored + run.stored * width, into + (run.local - from) * width);
    });
  };
  const int64_t end = begin + flat.numel();
  if (dtype == flat.dtype()) return copy(begin, end, flat.raw());
  for (int64_t at = begin; at < end; at += kPiece) {
    const int64_t count = std::min(kPiece, end - at);
    Tensor staged = ctx.Empty({count}, dtype);
    copy(at, at + count, staged.raw());
    ops::ConvertInto(ctx, staged, flat.Narrow(at - begin, count));
  }
}

// Whether the elements of a source are stored as the parameter has them, one after the other.
bool StoredAsKept(const ParamSpec& spec, const Found& found, int64_t begin, const Tensor& flat,
                  int64_t* stored) {
  if (*ToDType(found.entry->type) != flat.dtype()) return false;
  int runs = 0;
  bool plain = true;
  ForEachRun(spec, begin, begin + flat.numel(), [&](const ParamRun& run) {
    plain = plain && runs++ == 0 && (run.stored_stride == 1 || run.count == 1);
    *stored = run.stored;
  });
  return plain && runs == 1;
}

std::string NameOf(const ParamSpec& spec) {
  const std::string& first = spec.sources.front().tensor;
  return spec.sources.size() == 1 ? first : first + " to " + spec.sources.back().tensor;
}

class Loader {
 public:
  Loader(Context& ctx, const SafetensorsFolder& files, const PackInto& pack)
      : ctx_(ctx), files_(files), pack_(pack) {}

  absl::Status Read(std::span<const ParamId> ids) {
    for (const ParamId id : InFileOrder(ids)) {
      CADRE_RETURN_IF_ERROR(Ask(id));
      while (unread_ > kMostUnread && asked_.size() > 1) CADRE_RETURN_IF_ERROR(TakeFirst());
    }
    while (!asked_.empty()) CADRE_RETURN_IF_ERROR(TakeFirst());
    return absl::OkStatus();
  }

 private:
  // What is still to be copied once it is in the system's cache.
  struct Part {
    Found found;
    int64_t begin = 0, count = 0;
  };
  struct Asked {
    Asked(Context& ctx, ParamId id) : id(id), weight(ctx, id, Lease::kWrite) {}
    ParamId id;
    LeasedWeight weight;
    uint64_t last_piece = 0;
    int64_t bytes = 0;
    std::vector<Part> parts;
  };

  std::vector<ParamId> InFileOrder(std::span<const ParamId> ids) const {
    std::vector<std::tuple<std::string, int64_t, ParamId>> places;
    for (const ParamId id : ids) {
      const auto& sources = ctx_.parameters->spec(id).sources;
      if (sources.empty()) continue;
      const Found found = files_.Find(sources.front().tensor);
      places.emplace_back(found.file->path(), found.file->OffsetOf(*found.entry), id);
    }
    std::ranges::sort(places);
    std::vector<ParamId> sorted;
    for (const auto& place : places) sorted.push_back(std::get<ParamId>(place));
    return sorted;
  }

  absl::StatusOr<const FileReader*> ReaderOf(const SafetensorsFile& file) {
    const auto known = readers_.find(&file);
    if (known != readers_.end()) return &known->second;
    CADRE_ASSIGN_OR_RETURN(FileReader opened, FileReader::Open(file.path()));
    return &readers_.emplace(&file, std::move(opened)).first->second;
  }

  absl::Status Ask(ParamId id) {
    Asked& asked = asked_.emplace_back(ctx_, id);
    const ParamSpec& spec = ctx_.parameters->spec(id);
    const Tensor flat = asked.weight.tensor().Reshape({asked.weight.tensor().numel()});
    int64_t done = 0;
    for (const ParamSource& source : spec.sources) {
      const int64_t count = BlockElements(source);
      if (count > 0) CADRE_RETURN_IF_ERROR(AskSource(source, flat.Narrow(done, count), done));
      done += count;
    }
    return absl::OkStatus();
  }

  absl::Status AskSource(const ParamSource& source, const Tensor& flat, int64_t begin) {
    Asked& asked = asked_.back();
    const Found found = files_.Find(source.tensor);
    CADRE_ASSIGN_OR_RETURN(const FileReader* file, ReaderOf(*found.file));
    int64_t stored = 0;
    const bool kept = StoredAsKept(ctx_.parameters->spec(asked.id), found, begin, flat, &stored);
    if (!kept) {
      asked.parts.push_back({found, begin, flat.numel()});
      return AskForCache(source, found, *file);
    }
    const auto width = static_cast<int64_t>(SizeOf(flat.dtype()));
    const int64_t offset = found.file->OffsetOf(*found.entry) + stored * width;
    const std::span<std::byte> all(flat.raw(), flat.bytes());
    for (int64_t at = 0; at < static_cast<int64_t>(all.size()); at += kReadPiece) {
      const int64_t bytes = std::min(kReadPiece, static_cast<int64_t>(all.size()) - at);
      Count(bytes,
            reader_.Add({.file = file,
                         .offset = offset + at,
                         .to = all.subspan(static_cast<size_t>(at), static_cast<size_t>(bytes))}));
    }
    return absl::OkStatus();
  }

  // Its slice of the stored tensor, or all of it.
  absl::Status AskForCache(const ParamSource& source, const Found& found, const FileReader& file) {
    const auto size = static_cast<int64_t>(found.entry->end - found.entry->begin);
    const int64_t slice = source.index < 0 ? size : size / source.shape[0];
    const int64_t offset =
        found.file->OffsetOf(*found.entry) + std::max<int64_t>(source.index, 0) * slice;
    Count(slice, reader_.Add({.file = &file, .offset = offset, .cached = slice}));
    return absl::OkStatus();
  }

  void Count(int64_t bytes, uint64_t piece) {
    asked_.back().last_piece = piece;
    asked_.back().bytes += bytes;
    unread_ += bytes;
  }

  absl::Status TakeFirst() {
    Asked& first = asked_.front();
    CADRE_RETURN_IF_ERROR(reader_.Wait(first.last_piece));
    const ParamSpec& spec = ctx_.parameters->spec(first.id);
    const Tensor flat = first.weight.tensor().Reshape({first.weight.tensor().numel()});
    for (const Part& part : first.parts)
      Fill(ctx_, spec, part.found, part.begin, flat.Narrow(part.begin, part.count));
    Pack(first.id, first.weight.tensor());
    unread_ -= first.bytes;
    const ParamId id = first.id;
    asked_.pop_front();  // quantizes it
    const QuantizedParam* codes = ctx_.parameters->quantized(id);
    return codes == nullptr ? absl::OkStatus() : ops::CheckScales(NameOf(spec), *codes);
  }

  void Pack(ParamId id, const Tensor& weight) {
    if (pack_.packed == nullptr || id != pack_.head || ctx_.parameters->spec(id).quantized ||
        weight.dtype() == DType::kF64) {
      return;
    }
    pack_.packed->Get(ctx_, id, -1, PackedWeights::Direction::kForward, weight);
  }

  Context& ctx_;
  const SafetensorsFolder& files_;
  const PackInto pack_;
  std::map<const SafetensorsFile*, FileReader> readers_;
  std::deque<Asked> asked_;
  int64_t unread_ = 0;
  ReadAhead reader_;  // ends before what it reads into
};

}  // namespace

absl::Status ReadParams(Context& ctx, const SafetensorsFolder& files, std::span<const ParamId> ids,
                        const PackInto& pack) {
  return Loader(ctx, files, pack).Read(ids);
}

}  // namespace cadre
