#include "serving/token_budget.h"

#include <algorithm>
#include <chrono>
#include <iterator>
#include <limits>
#include <vector>

#include "core/ops/matmul.h"
#include "model/model_cost.h"
#include "serving/step_cost.h"

namespace cadre {
namespace {

constexpr double kHalfAgain = 1.5;
constexpr double kMostSeconds = 0.05;  // then the round is the last
// More than most caches hold, so that weights come from memory as they do in a step.
constexpr int64_t kMostElements = int64_t{48} << 20;
constexpr int kRounds = 6;
constexpr int64_t kRows[] = {1, 4, 8, 16, 24, 32, 64, 128, 256, 512, 1024};
constexpr int64_t kManyRows = 256;   // arithmetic alone counts
constexpr int64_t kPromptSteps = 6;  // ridges in a step without decoding

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Projections, layer after layer, as many as kMostElements hold, one at least. Empty where this
// rank has none.
std::vector<ParamId> SomeProjections(const ParameterStore& store) {
  std::vector<ParamId> chosen;
  int64_t elements = 0;
  for (ParamId id = 0; id < store.size(); ++id) {
    const ParamSpec& spec = store.spec(id);
    if (spec.use != ParamUse::kProjection || spec.shape.rank() != 2) continue;
    elements += spec.shape.numel();
    if (!chosen.empty() && elements > kMostElements) break;
    chosen.push_back(id);
  }
  return chosen;
}

// One product of each matrix at `rows` rows.
double TimeProducts(Context& ctx, std::span<const ParamId> ids, int64_t rows, DType dtype) {
  const double begin = Seconds();
  for (ParamId id : ids) {
    const Shape shape = ctx.parameters->spec(id).shape;
    ops::MatMul(ctx, {ctx.Zeros({rows, shape[1]}, dtype)}, {.weight = id});
  }
  return Seconds() - begin;
}

// The best time at each number of rows, up to where it is half as long again. Round after round, so
// that a moment in which the machine has other work spoils one time of each.
std::vector<RowTime> BestTimes(Context& ctx, std::span<const ParamId> ids, DType dtype) {
  std::vector<RowTime> best;
  const double begin = Seconds();
  for (int round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < std::size(kRows); ++i) {
      const double seconds = TimeProducts(ctx, ids, kRows[i], dtype);
      if (i == best.size()) best.push_back({kRows[i], seconds});
      best[i].seconds = std::min(best[i].seconds, seconds);
      if (best[i].seconds > kHalfAgain * best.front().seconds) break;
    }
    if (Seconds() - begin > kMostSeconds) break;
  }
  return best;
}

// FLOP/s of a product whose time is arithmetic's, the better of two.
double FlopsOfManyRows(Context& ctx, ParamId id, DType dtype) {
  double seconds = std::numeric_limits<double>::infinity();
  for (int round = 0; round < 2; ++round) {
    seconds = std::min(seconds, TimeProducts(ctx, std::span(&id, 1), kManyRows, dtype));
  }
  const auto elements = static_cast<double>(ctx.parameters->spec(id).shape.numel());
  return seconds > 0 ? 2 * elements * static_cast<double>(kManyRows) / seconds : 0;
}

// Weights of the layers' matrices for each that a token multiplies with.
double WeightsPerActive(const DecoderSpec& spec) {
  const ParameterCounts counts = CountParameters(spec);
  return static_cast<double>(counts.total) / static_cast<double>(counts.active);
}

}  // namespace

int64_t RidgeOf(std::span<const RowTime> times) {
  const double bound = kHalfAgain * times.front().seconds;
  for (size_t i = 1; i < times.size(); ++i) {
    const RowTime& above = times[i];
    const RowTime& below = times[i - 1];
    if (above.seconds < bound) continue;
    const double part = (bound - below.seconds) / (above.seconds - below.seconds);
    return below.rows + static_cast<int64_t>(std::clamp(part, 0.0, 1.0) *
                                             static_cast<double>(above.rows - below.rows));
  }
  return times.back().rows;
}

MachinePeaks PeaksOf(std::span<const RowTime> times, double elements, double bytes) {
  MachinePeaks peaks;
  for (const RowTime& time : times) {
    if (time.seconds <= 0) continue;
    peaks.flops_per_second = std::max(peaks.flops_per_second,
                                      2 * elements * static_cast<double>(time.rows) / time.seconds);
    peaks.bytes_per_second = std::max(peaks.bytes_per_second, bytes / time.seconds);
  }
  return peaks;
}

MeasuredRidge MeasureRidge(Context& ctx, const Model& model) {
  const std::vector<ParamId> ids = SomeProjections(*ctx.parameters);
  if (ids.empty()) return {.tokens = kRows[std::size(kRows) - 1]};
  TimeProducts(ctx, ids, 1, model.dtype());  // packs
  const std::vector<RowTime> times = BestTimes(ctx, ids, model.dtype());
  const auto rows = static_cast<double>(RidgeOf(times));
  double elements = 0;
  for (ParamId id : ids) {
    elements += static_cast<double>(ctx.parameters->spec(id).shape.numel());
  }
  const double many = FlopsOfManyRows(ctx, ids.front(), model.dtype());
  const double bytes = elements * WeightBytes::Of(*ctx.parameters, model.dtype()).layers;
  MachinePeaks peaks = PeaksOf(times, elements, bytes);
  peaks.flops_per_second = std::max(peaks.flops_per_second, many);
  return {
      .tokens = std::max<int64_t>(1, static_cast<int64_t>(rows * WeightsPerActive(model.spec()))),
      .peaks = peaks};
}

namespace {

// All ranks are taken for as fast as the slowest.
absl::StatusOr<double> OfAllRanks(double rate, ServingRanks& ranks) {
  CADRE_ASSIGN_OR_RETURN(const int64_t least,
                         ranks.Least(static_cast<int64_t>(rate), {"machine peaks"}));
  return static_cast<double>(least) * ranks.layout().world();
}

}  // namespace

absl::StatusOr<TokenBudget> ChooseTokenBudget(Context& ctx, const Model& model,
                                              const TokenBudgetOptions& options) {
  TokenBudget budget{.step = options.max_num_batched_tokens, .mixed = options.max_num_mixed_tokens};
  if (budget.step > 0) {
    if (budget.mixed == 0) budget.mixed = budget.step;
    return budget;
  }
  const MeasuredRidge measured = MeasureRidge(ctx, model);
  budget.ridge = measured.tokens;
  budget.peaks = measured.peaks;
  if (options.ranks != nullptr) {
    ServingRanks& ranks = *options.ranks;
    CADRE_ASSIGN_OR_RETURN(budget.ridge, ranks.Least(budget.ridge, {"token budget"}));
    CADRE_ASSIGN_OR_RETURN(budget.peaks.flops_per_second,
                           OfAllRanks(budget.peaks.flops_per_second, ranks));
    CADRE_ASSIGN_OR_RETURN(budget.peaks.bytes_per_second,
                           OfAllRanks(budget.peaks.bytes_per_second, ranks));
  }
  if (budget.mixed == 0) budget.mixed = budget.ridge;
  budget.step = std::max(kPromptSteps * budget.ridge, options.max_num_seqs + budget.mixed);
  return budget;
}

}  // namespace cadre
