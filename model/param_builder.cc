#include "model/param_builder.h"

#include <algorithm>

#include "model/param_layout.h"

namespace cadre {
namespace {

int64_t HeldRows(const SourceRows& source) {
  return source.block.rows < 0 ? source.rows - source.block.row_begin : source.block.rows;
}

bool IsWhole(const ParamSource& source) {
  const ParamBlock& block = source.block;
  return block.row_begin == 0 && block.rows < 0 && block.column_begin == 0 && block.columns < 0;
}

}  // namespace

bool MatchesPattern(std::string_view pattern, std::string_view name) {
  size_t p = 0, n = 0, star = std::string_view::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && pattern[p] == name[n]) {
      ++p;
      ++n;
    } else if (star != std::string_view::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

ParamBuilder::ParamBuilder(ParameterStore& store, double init_stddev,
                           std::vector<std::string> frozen, const ModelPart& part)
    : store_(store),
      init_stddev_(init_stddev),
      frozen_(std::move(frozen)),
      part_(part),
      matched_(frozen_.size(), false) {}

ParamSpec ParamBuilder::MatrixSpec(const std::string& name, std::vector<SourceRows> sources,
                                   int64_t columns, ParamUse use) const {
  ParamSpec spec{.name = name, .init = Normal(), .use = use};
  int64_t rows = 0, held_columns = columns;
  for (SourceRows& source : sources) {
    const ParamBlock& block = source.block;
    rows += HeldRows(source);
    held_columns = block.columns < 0 ? columns - block.column_begin : block.columns;
    spec.sources.push_back(
        {.tensor = std::move(source.tensor), .shape = {source.rows, columns}, .block = block});
  }
  spec.shape = {rows, held_columns};
  return spec;
}

ParamId ParamBuilder::Matrix(const std::string& name, std::vector<SourceRows> sources,
                             int64_t columns, bool partial) {
  ParamSpec spec = MatrixSpec(name, std::move(sources), columns, ParamUse::kProjection);
  spec.partial_gradient = partial;
  return Add(std::move(spec));
}

ParamId ParamBuilder::Gate(const std::string& tensor, int64_t rows, int64_t columns) {
  return Add(MatrixSpec(tensor, {{tensor, rows}}, columns, ParamUse::kOther));
}

ParamId ParamBuilder::Head(const std::string& tensor, int64_t rows, int64_t columns,
                           const ParamBlock& block) {
  return Add(MatrixSpec(tensor, {{tensor, rows, block}}, columns, ParamUse::kHead));
}

ParamSpec ParamBuilder::Table(const std::string& tensor, int64_t rows, int64_t columns,
                              const ParamBlock& block) const {
  return {.name = tensor,
          .shape = {HeldRows({tensor, rows, block}), columns},
          .sources = {{.tensor = tensor, .shape = {rows, columns}, .block = block}},
          .init = Normal(),
          .decay = DecayKind::kNoDecay};
}

ParamId ParamBuilder::Norm(const std::string& tensor, int64_t size, const ParamBlock& block,
                           bool partial) {
  return Add({.name = tensor,
              .shape = {HeldRows({tensor, size, block})},
              .sources = {{.tensor = tensor, .shape = {size}, .block = block}},
              .init = {Initializer::Kind::kOnes},
              .decay = DecayKind::kNoDecay,
              .partial_gradient = partial});
}

ParamId ParamBuilder::Bias(const std::string& name, std::vector<SourceRows> sources, bool partial) {
  ParamSpec spec{.name = name, .decay = DecayKind::kNoDecay, .partial_gradient = partial};
  int64_t rows = 0;
  for (SourceRows& source : sources) {
    rows += HeldRows(source);
    spec.sources.push_back(
        {.tensor = std::move(source.tensor), .shape = {source.rows}, .block = source.block});
  }
  spec.shape = {rows};
  return Add(std::move(spec));
}

ParamId ParamBuilder::Add(ParamSpec spec) {
  int64_t held = 0;
  for (const ParamSource& source : spec.sources) held += BlockElements(source);
  CADRE_CHECK(held == spec.shape.numel(), "{}: {} elements of its tensors for shape {}", spec.name,
              held, spec.shape.ToString());
  spec.layer = layer_;
  // Ranks that share an expert bring different tokens to it, or one of them adds its bias.
  const bool expert = spec.group == ParamGroup::kExpert;
  const bool partial = expert || part_.sequence_parallel || spec.partial_gradient;
  const bool shared = (expert ? part_.etp : part_.tp) > 1;
  const bool whole = std::ranges::all_of(spec.sources, IsWhole);
  if (shared && !whole) spec.tensor_spread = Spread::kSharded;
  spec.partial_gradient = shared && whole && partial;
  size_t frozen = 0;
  for (const ParamSource& source : spec.sources) {
    bool any = false;
    for (size_t i = 0; i < frozen_.size(); ++i) {
      if (!MatchesPattern(frozen_[i], source.tensor)) continue;
      matched_[i] = any = true;
    }
    frozen += any;
  }
  if (frozen == spec.sources.size() && frozen > 0) spec.trainable = false;
  if (frozen > 0 && frozen < spec.sources.size() && partly_frozen_.empty()) {
    partly_frozen_ = spec.name;
  }
  return store_.Add(std::move(spec));
}

absl::Status ParamBuilder::Finish() const {
  for (size_t i = 0; i < frozen_.size(); ++i) {
    if (!matched_[i]) {
      return InvalidArgument("frozen_parameters: '{}' matches no parameter", frozen_[i]);
    }
  }
  if (!partly_frozen_.empty()) {
    return InvalidArgument(
        "frozen_parameters: a part of {}, which is one parameter here (allowed: all of it or none)",
        partly_frozen_);
  }
  return absl::OkStatus();
}

}  // namespace cadre
