#include "model/score.h"

#include <cstring>
#include <vector>

#include "core/ops/linear_cross_entropy.h"

namespace cadre {

absl::Status CheckTokens(const Decoder& decoder, std::span<const int32_t> ids) {
  if (ids.empty()) return InvalidArgument("ids: none given (at least 1 is needed)");
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= decoder.spec().vocab) {
      return InvalidArgument("ids[{}]: {} (allowed: 0 to vocab_size - 1 = {})", i, ids[i],
                             decoder.spec().vocab - 1);
    }
  }
  if (static_cast<int64_t>(ids.size()) > decoder.max_position()) {
    return InvalidArgument("ids: {} tokens (allowed: at most the model's {} positions)", ids.size(),
                           decoder.max_position());
  }
  return absl::OkStatus();
}

Scores ScoreBatch(Context& ctx, const Decoder& decoder, const Batch& batch) {
  Context inference = ctx;
  inference.tape = nullptr;
  int64_t tokens = batch.tokens();
  // The row before a token predicts it.
  std::vector<int32_t> targets(static_cast<size_t>(tokens), -1);
  const int32_t* ids = batch.ids.data<int32_t>();
  for (int64_t s = 0; s < batch.sequences(); ++s) {
    size_t at = static_cast<size_t>(s);
    for (int32_t t = batch.offsets[at]; t + 1 < batch.offsets[at + 1]; ++t) {
      targets[static_cast<size_t>(t)] = ids[t + 1];
    }
  }
  DecoderOutput out = decoder.Forward(inference, batch);
  Tensor predicted =
      ops::LinearCrossEntropy(inference, out.hidden,
                              {.weight = decoder.head(),
                               .targets = Tensor::Of<int32_t>(*ctx.allocator, {tokens},
                                                              std::span<const int32_t>(targets))})
          .logprobs;
  Tensor logprobs = ctx.Zeros({tokens}, predicted.dtype());
  size_t width = SizeOf(predicted.dtype());
  if (tokens > 1) {
    std::memcpy(logprobs.raw() + width, predicted.raw(), static_cast<size_t>(tokens - 1) * width);
  }
  return {out.hidden.value, logprobs};
}

}  // namespace cadre
