#include "serving/token_report.h"

#include <algorithm>
#include <limits>

#include "core/parallel_for.h"
#include "serving/engine.h"
#include "serving/sampler.h"

namespace cadre {
namespace {

FinishReason FinishOf(const Sequence& sequence, int32_t token, int64_t max_context) {
  const SamplingParams& params = sequence.request.sampling;
  if (std::ranges::binary_search(params.stop_token_ids, token)) return FinishReason::kStop;
  const bool full = sequence.known_tokens() >= max_context;
  return sequence.generated() >= params.max_tokens || full ? FinishReason::kLength
                                                           : FinishReason::kNone;
}

}  // namespace

void ReportPrompt(const Context& ctx, StepForward& forward, const ScheduledChunk& chunk,
                  int64_t first_row) {
  Sequence& sequence = *chunk.sequence;
  TokenEvent& event = sequence.first_event;
  // Known before the first token is told of.
  const std::vector<RowRange> slices = ScoredRows(chunk);
  if (sequence.prompt_reported == 0) {
    event.prompt_logprobs.push_back({sequence.tokens[0], std::numeric_limits<float>::quiet_NaN()});
    event.prompt_top.emplace_back();
    sequence.prompt_reported = 1;
  }
  for (const RowRange& slice : slices) {
    const LogitRows rows = forward.Logits(sequence.lane, {first_row + slice.begin, slice.count});
    const int64_t told = sequence.prompt_reported;
    event.prompt_logprobs.resize(static_cast<size_t>(told + slice.count));
    event.prompt_top.resize(static_cast<size_t>(told + slice.count));
    ParallelFor(ctx, slice.count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int32_t token = sequence.tokens[told + i];
        event.prompt_logprobs[told + i] = {token, rows.row(i)[token] - rows.lse[i],
                                           RankOf(rows.row(i), token)};
        event.prompt_top[told + i] =
            TopLogprobs(rows.row(i), rows.lse[i], sequence.request.sampling.prompt_logprobs);
      }
    });
    sequence.prompt_reported += slice.count;
  }
}

TokenEvent AppendToken(Sequence& sequence, const SampledToken& sampled, int64_t max_context) {
  const SamplingParams& params = sequence.request.sampling;
  TokenEvent event;
  if (params.max_tokens == 0) {
    event.finish = FinishReason::kLength;
    return event;
  }
  sequence.tokens.push_back(sampled.token);
  event.token = sampled.token;
  if (params.logprobs >= 0) {
    event.logprob = sampled.logits[sampled.token] - sampled.lse;
    event.top = TopLogprobs(sampled.logits, sampled.lse, params.logprobs);
  }
  event.finish = FinishOf(sequence, sampled.token, max_context);
  return event;
}

void CompleteEvent(Sequence& sequence, int64_t weight_version, TokenEvent& event) {
  event.request_id = sequence.request.id;
  event.weight_version = weight_version;
  if (!sequence.started) {
    event.prompt_logprobs = std::move(sequence.first_event.prompt_logprobs);
    event.prompt_top = std::move(sequence.first_event.prompt_top);
    event.cached_tokens = sequence.first_event.cached_tokens;
    event.embedding = std::move(sequence.first_event.embedding);
    sequence.started = true;
  }
  if (event.finish == FinishReason::kNone) return;
  const double end = Now();
  const bool scheduled = sequence.scheduled > 0;
  event.queue_seconds = (scheduled ? sequence.scheduled : end) - sequence.submitted;
  if (!scheduled) return;
  event.prefill_seconds =
      (sequence.first_token > 0 ? sequence.first_token : end) - sequence.scheduled;
}

}  // namespace cadre
