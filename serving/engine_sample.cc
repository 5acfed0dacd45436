// How a step's rows become tokens.
#include "core/parallel_for.h"
#include "serving/engine.h"
#include "serving/sampler.h"

namespace cadre {

// A round samples one row of every sequence that still has one: the first the row of its last known
// token, each further one that of a guess that the round before has drawn.
absl::Status Engine::Sample(StepForward& forward, std::span<const ScheduledChunk> chunks,
                            std::span<const StepPlan> plans) {
  std::vector<SampledRow> rows;
  int64_t sampled = 0;
  for (const ScheduledChunk& chunk : chunks) {
    if (chunk.samples()) rows.push_back({chunk.sequence, sampled});
    sampled += chunk.sampled_rows();
  }
  if (rows.empty()) return Failure();
  const LogitRows logits = forward.Sampled(plans);
  CADRE_RETURN_IF_ERROR(Failure());
  for (size_t round = 0; !rows.empty(); ++round) {
    const std::vector<int32_t> tokens = DrawAll(rows, logits);
    std::vector<SampledRow> next;
    for (size_t i = 0; i < rows.size(); ++i) {
      const SampledRow& row = rows[i];
      Sequence& sequence = *row.sequence;
      if (!row.may_go_on()) {
        if (!sequence.draft.empty()) {
          speculation_->Verified(sequence, static_cast<int64_t>(round));
        }
        const bool ended = row.mask->status.ok();
        Finish(sequence.request.id, ended ? FinishReason::kStop : FinishReason::kError,
               row.mask->status);
        continue;
      }
      const bool guessed = round < sequence.draft.size() && sequence.draft[round] == tokens[i];
      const bool last = Append(sequence, {tokens[i], logits.row(row.row), logits.lse[row.row]});
      if (!last && row.mask != nullptr) masks_.Advance(sequence.constraint, tokens[i]);
      if (guessed && !last) {
        next.push_back({&sequence, row.row + 1});
        continue;
      }
      EndDraft(sequence, static_cast<int64_t>(round) + guessed);
      if (last) Forget(sequence.request.id);
    }
    rows = std::move(next);
  }
  return absl::OkStatus();
}

void Engine::EndDraft(Sequence& sequence, int64_t accepted) {
  if (sequence.draft.empty()) return;
  // Of the guesses, those that were drawn are stored; the newest token never is.
  Commit(sequence, sequence.known_tokens() - 1);
  speculation_->Verified(sequence, accepted);
}

bool Engine::Append(Sequence& sequence, const SampledToken& sampled) {
  if (sequence.first_token == 0) sequence.first_token = Now();
  TokenEvent event = AppendToken(sequence, sampled, options_.max_model_len);
  const bool last = event.finish != FinishReason::kNone;
  Emit(sequence, std::move(event));
  return last;
}

std::vector<int32_t> Engine::DrawAll(std::span<SampledRow> rows, const LogitRows& logits) {
  std::vector<int32_t> tokens(rows.size(), -1);
  std::vector<size_t> free, masked;
  for (size_t i = 0; i < rows.size(); ++i) {
    (rows[i].sequence->constraint == nullptr ? free : masked).push_back(i);
  }
  // Masks may still be in work meanwhile.
  Draw(rows, free, logits, tokens);
  for (const size_t i : masked) rows[i].mask = &masks_.Wait(*rows[i].sequence->constraint);
  Draw(rows, masked, logits, tokens);
  return tokens;
}

void Engine::Draw(std::span<const SampledRow> rows, std::span<const size_t> which,
                  const LogitRows& logits, std::span<int32_t> tokens) {
  ParallelFor(ctx_, static_cast<int64_t>(which.size()), 1, [&](int64_t begin, int64_t end) {
    for (const size_t i :
         which.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin))) {
      if (!rows[i].may_go_on()) continue;
      const Sequence& sequence = *rows[i].sequence;
      const SamplingParams& params = sequence.request.sampling;
      const bool early = sequence.generated() < params.min_tokens;
      tokens[i] =
          SampleToken(params, {.logits = logits.row(rows[i].row),
                               .lse = logits.lse[rows[i].row],
                               .position = sequence.known_tokens(),
                               .prompt = *sequence.request.prompt,
                               .generated = sequence.generated_tokens(),
                               .banned = early ? std::span<const int32_t>(params.stop_token_ids)
                                               : std::span<const int32_t>(),
                               .allowed = rows[i].mask != nullptr
                                              ? std::span<const uint64_t>(rows[i].mask->allowed)
                                              : std::span<const uint64_t>()});
    }
  });
}

}  // namespace cadre
