// Registers a decoder's parameters: name, shape, the Hugging Face tensors that fill it,
// initializer, decay kind. One object per model being built, by one thread.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "core/parameters.h"
#include "core/status.h"
#include "parallel/model_part.h"

namespace cadre {

// One Hugging Face tensor of `rows` rows, and what this rank holds of it.
struct SourceRows {
  std::string tensor;
  int64_t rows;
  ParamBlock block = {};
};

class ParamBuilder {
 public:
  // frozen: patterns over Hugging Face tensor names, where * stands for any characters; what they
  // match gets no gradient and no update.
  // part: what this rank holds. Under sequence parallelism dense parameters that are whole on it
  // see its tokens alone, so their gradients are partial sums; else those are of which it is said
  // below
  // (`partial`): a rank uses them for a part of the features, its heads or a bias added once.
  ParamBuilder(ParameterStore& store, double init_stddev, std::vector<std::string> frozen,
               const ModelPart& part = {});

  const ModelPart& part() const { return part_; }

  // The layer that the next parameters belong to; -1 outside the layers.
  void set_layer(int layer) { layer_ = layer; }

  // [sum of held rows, held columns], decays. `columns` are the whole tensors'; all blocks hold the
  // same number of them.
  ParamId Matrix(const std::string& name, std::vector<SourceRows> sources, int64_t columns,
                 bool partial = false);
  ParamId Matrix(const std::string& tensor, int64_t rows, int64_t columns,
                 const ParamBlock& block = {}) {
    return Matrix(tensor, {{tensor, rows, block}}, columns);
  }
  // A matrix that is kept as it is where projections are quantized: a router's or a gate's.
  ParamId Gate(const std::string& tensor, int64_t rows, int64_t columns);
  // The output head, not tied.
  ParamId Head(const std::string& tensor, int64_t rows, int64_t columns, const ParamBlock& block);
  // An embedding, to be added.
  ParamSpec Table(const std::string& tensor, int64_t rows, int64_t columns,
                  const ParamBlock& block) const;
  ParamId Norm(const std::string& tensor, int64_t size, const ParamBlock& block = {},
               bool partial = false);
  // [sum of held rows], starts at zero.
  ParamId Bias(const std::string& name, std::vector<SourceRows> sources, bool partial = false);
  // Anything else; layer, trainable and spread are set here. spec.partial_gradient: `partial`.
  ParamId Add(ParamSpec spec);

  Initializer Normal() const { return {Initializer::Kind::kNormal, init_stddev_}; }

  // kInvalidArgument: a frozen pattern matched nothing, or a part of a fused parameter.
  absl::Status Finish() const;

 private:
  ParamSpec MatrixSpec(const std::string& name, std::vector<SourceRows> sources, int64_t columns,
                       ParamUse use) const;

  ParameterStore& store_;
  double init_stddev_;
  std::vector<std::string> frozen_;
  const ModelPart part_;
  std::vector<bool> matched_;
  std::string partly_frozen_;
  int layer_ = -1;
};

// Whether `name` fits a pattern in which * stands for any characters.
bool MatchesPattern(std::string_view pattern, std::string_view name);

}  // namespace cadre
