// For tests of KV eviction: a plain Llama in double precision, which reads prompts whole, selects
// keys by a policy as memory/kv_eviction.h says, and attends to nothing but those. It shares the
// policies with the engine, and no other code of serving, memory or core/ops.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "core/parameters.h"
#include "memory/kv_eviction.h"
#include "model/model.h"

namespace cadre {

class EvictionReference {
 public:
  using Row = std::vector<double>;

  // A model of f64, all layers alike, no bias.
  EvictionReference(Model& model, const std::string& policy, int64_t budget)
      : spec_(model.spec()),
        attention_(spec_.layers[0].attention),
        policy_(*MakeEvictionPolicy(policy)),
        budget_(budget),
        layers_(spec_.layers.size()) {
    ParameterStore& store = model.parameters();
    for (ParamId id = 0; id < store.size(); ++id) {
      const Tensor tensor = store.Acquire(id, Lease::kForward);
      const double* next = tensor.data<double>();
      for (const ParamSource& source : store.spec(id).sources) {
        weights_[source.tensor].assign(next, next + source.shape.numel());
        next += source.shape.numel();
      }
      store.Release(id, Lease::kForward);
    }
  }

  // Log-probabilities of the token behind the prompt.
  Row Read(const std::vector<int32_t>& prompt) {
    std::vector<Row> x;
    for (const int32_t id : prompt) x.push_back(Embedding(id));
    std::vector<double> preferences;
    std::vector<KeyAttention> seen;
    for (size_t l = 0; l < layers_.size(); ++l) {
      seen.push_back(ReadLayer(l, x));
      preferences.push_back(policy_->Preference(seen.back()));
    }
    position_ = std::ssize(prompt);
    const EvictionShape shape{position_, std::ssize(layers_), budget_};
    evicts_prompt_ = policy_->Evicts(shape);
    const bool scored = evicts_prompt_ || policy_->observed() == Queries::kAll;
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      std::vector<float> scores;
      if (scored) scores = policy_->Scores(seen[l]);
      const int64_t n = std::ssize(scores) / KvHeads();
      for (int64_t h = 0; h < KvHeads(); ++h) {
        layer.heads[h].scores.assign(scores.begin() + h * n, scores.begin() + (h + 1) * n);
      }
      if (evicts_prompt_) Select(layer, policy_->Budgets(shape, preferences)[l]);
      const int64_t count = std::ssize(layer.heads[0].keys);
      layer.most = evicts_prompt_ ? count : std::max(count, budget_);
    }
    return LogProbabilities(x.back());
  }

  // Of the one behind `token`, which comes next.
  Row Next(int32_t token) {
    Row x = Embedding(token);
    for (size_t l = 0; l < layers_.size(); ++l) {
      Layer& layer = layers_[l];
      const Projections all = Project(l, x);
      for (int64_t h = 0; h < KvHeads(); ++h) {
        layer.heads[h].keys.push_back({position_, Part(all.k, h), Part(all.v, h)});
      }
      const int64_t count = std::ssize(layer.heads[0].keys);
      KeyAttention newest{.kv_heads = KvHeads(), .keys = count};
      if (policy_->observed() != Queries::kNone) newest.mean.assign(KvHeads() * count, 0.0f);
      Row out;
      for (int64_t h = 0; h < attention_.heads; ++h) {
        const int64_t kv = h / Group();
        const std::vector<Key>& keys = layer.heads[kv].keys;
        const Row p = Probabilities(Part(all.q, h), position_, keys, count);
        for (int64_t j = 0; !newest.mean.empty() && j < count; ++j) {
          newest.mean[kv * count + j] += static_cast<float>(p[j] / static_cast<double>(Group()));
        }
        Append(&out, Mix(p, keys));
      }
      EndLayer(l, out, &x);
      if (policy_->evicts_answers()) Settle(layer, newest);
    }
    ++position_;
    return LogProbabilities(x);
  }

 private:
  using Queries = KvEvictionPolicy::Queries;
  struct Key {
    int64_t position;
    Row k, v;  // k unrotated
  };
  struct Head {
    std::vector<Key> keys;  // oldest first
    std::vector<float> scores;
  };
  struct Layer {
    std::map<int64_t, Head> heads;
    int64_t most = 0;
  };
  struct Projections {
    Row q, k, v;
  };

  int64_t KvHeads() const { return attention_.kv_heads; }
  int64_t Group() const { return attention_.heads / attention_.kv_heads; }
  Row Part(const Row& all, int64_t head) const {
    const auto begin = all.begin() + head * attention_.head_dim;
    return {begin, begin + attention_.head_dim};
  }
  static void Append(Row* to, const Row& more) { to->insert(to->end(), more.begin(), more.end()); }

  Row Embedding(int32_t id) const {
    const Row& table = weights_.at("model.embed_tokens.weight");
    return {table.begin() + id * spec_.hidden, table.begin() + (id + 1) * spec_.hidden};
  }
  Row Times(const std::string& name, const Row& x) const {
    const Row& w = weights_.at(name + ".weight");
    Row y;
    for (auto row = w.begin(); row != w.end(); row += std::ssize(x)) {
      y.push_back(std::inner_product(x.begin(), x.end(), row, 0.0));
    }
    return y;
  }
  Row Normed(const std::string& name, const Row& x) const {
    const double square = std::inner_product(x.begin(), x.end(), x.begin(), 0.0);
    const double scale = 1 / std::sqrt(square / static_cast<double>(x.size()) + spec_.norm_eps);
    Row y = weights_.at(name + ".weight");
    for (size_t i = 0; i < x.size(); ++i) y[i] *= x[i] * scale;
    return y;
  }
  static std::string Name(size_t layer, const char* part) {
    return fmt::format("model.layers.{}.{}", layer, part);
  }
  Projections Project(size_t l, const Row& x) const {
    const Row normed = Normed(Name(l, "input_layernorm"), x);
    return {Times(Name(l, "self_attn.q_proj"), normed), Times(Name(l, "self_attn.k_proj"), normed),
            Times(Name(l, "self_attn.v_proj"), normed)};
  }
  void EndLayer(size_t l, const Row& attended, Row* x) const {
    const Row out = Times(Name(l, "self_attn.o_proj"), attended);
    for (size_t i = 0; i < out.size(); ++i) (*x)[i] += out[i];
    const Row normed = Normed(Name(l, "post_attention_layernorm"), *x);
    Row inner = Times(Name(l, "mlp.gate_proj"), normed);
    const Row up = Times(Name(l, "mlp.up_proj"), normed);
    for (size_t i = 0; i < inner.size(); ++i) inner[i] *= up[i] / (1 + std::exp(-inner[i]));
    const Row down = Times(Name(l, "mlp.down_proj"), inner);
    for (size_t i = 0; i < down.size(); ++i) (*x)[i] += down[i];
  }
  Row LogProbabilities(const Row& x) const {
    Row logits = Times("lm_head", Normed("model.norm", x));
    double sum = 0;
    for (const double logit : logits) sum += std::exp(logit);
    for (double& logit : logits) logit -= std::log(sum);
    return logits;
  }

  // Pairs are half a head apart.
  Row Rotated(Row x, int64_t position) const {
    const int64_t half = attention_.head_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) *
                           std::pow(spec_.rope.theta, -2.0 * static_cast<double>(i) /
                                                          static_cast<double>(attention_.head_dim));
      const double a = x[i], b = x[i + half];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + half] = b * std::cos(angle) + a * std::sin(angle);
    }
    return x;
  }
  // The query's over the first `count` keys. While an answer grows a policy may count positions in
  // the cache.
  Row Probabilities(const Row& q, int64_t position, const std::vector<Key>& keys, int64_t count,
                    bool reading = false) const {
    const bool in_cache = policy_->positions_in_cache() && !reading;
    const Row query = Rotated(q, in_cache ? count - 1 : position);
    Row p;
    double sum = 0;
    for (int64_t j = 0; j < count; ++j) {
      const Row key = Rotated(keys[j].k, in_cache ? j : keys[j].position);
      const double dot = std::inner_product(query.begin(), query.end(), key.begin(), 0.0);
      p.push_back(std::exp(dot / std::sqrt(static_cast<double>(attention_.head_dim))));
      sum += p.back();
    }
    for (double& one : p) one /= sum;
    return p;
  }
  Row Mix(const Row& p, const std::vector<Key>& keys) const {
    Row out(static_cast<size_t>(attention_.head_dim), 0.0);
    for (size_t j = 0; j < p.size(); ++j) {
      for (size_t i = 0; i < out.size(); ++i) out[i] += p[j] * keys[j].v[i];
    }
    return out;
  }

  // Reads all tokens and says what the policy looks at.
  KeyAttention ReadLayer(size_t l, std::vector<Row>& x) {
    Layer& layer = layers_[l];
    const int64_t tokens = std::ssize(x);
    std::vector<Row> queries, attended(x.size());
    for (int64_t i = 0; i < tokens; ++i) {
      Projections all = Project(l, x[i]);
      queries.push_back(std::move(all.q));
      for (int64_t h = 0; h < KvHeads(); ++h) {
        layer.heads[h].keys.push_back({i, Part(all.k, h), Part(all.v, h)});
      }
    }
    const Queries observed = policy_->observed();
    const int64_t window =
        observed == Queries::kAll ? tokens : std::max<int64_t>(policy_->window(), 1);
    const int64_t first = tokens - window;
    KeyAttention seen{.kv_heads = KvHeads(), .keys = observed == Queries::kWindow ? first : tokens};
    std::vector<Row> rows;  // of the head at hand, the observed queries'
    for (int64_t h = 0; h < attention_.heads; ++h) {
      rows.clear();
      const std::vector<Key>& keys = layer.heads[h / Group()].keys;
      for (int64_t i = 0; i < tokens; ++i) {
        const Row p = Probabilities(Part(queries[i], h), i, keys, i + 1, /*reading=*/true);
        Append(&attended[i], Mix(p, keys));
        if (i >= first) rows.push_back(p);
      }
      if (observed != Queries::kNone) Weigh(h, rows, &seen);
    }
    for (int64_t i = 0; i < tokens; ++i) EndLayer(l, attended[i], &x[i]);
    return seen;
  }

  void Weigh(int64_t head, const std::vector<Row>& rows, KeyAttention* seen) const {
    const int64_t n = seen->keys, kv = head / Group();
    const auto count = static_cast<double>(rows.size()), group = static_cast<double>(Group());
    const bool sums = policy_->observed() == Queries::kAll;
    seen->mean.resize(static_cast<size_t>(KvHeads() * n));
    if (rows.size() > 1 && !sums) seen->variance.resize(seen->mean.size());
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0, apart = 0;
      for (const Row& p : rows) {
        const double one = j < std::ssize(p) ? p[j] : 0;
        sum += one;
        if (one > 0) seen->entropy -= one * std::log(one);
      }
      seen->mean[kv * n + j] += static_cast<float>((sums ? sum : sum / count) / group);
      if (seen->variance.empty()) continue;
      for (const Row& p : rows) apart += std::pow(p[j] - sum / count, 2);
      seen->variance[kv * n + j] += static_cast<float>(apart / (count - 1) / group);
      seen->total_variance += apart / (count - 1);
    }
  }

  void Select(Layer& layer, int64_t keep) const {
    for (auto& [h, head] : layer.heads) {
      const int64_t tokens = std::ssize(head.keys);
      const int64_t candidates = tokens - std::min(policy_->Recent(budget_), tokens);
      const std::vector<float> ranked(head.scores.begin(), head.scores.begin() + candidates);
      Head left;
      for (const int32_t i : SelectKept(ranked, std::min(keep, candidates), tokens)) {
        left.keys.push_back(head.keys[i]);
        if (i < std::ssize(head.scores)) left.scores.push_back(head.scores[i]);
      }
      head = std::move(left);
    }
  }

  void Settle(Layer& layer, const KeyAttention& newest) const {
    std::vector<float> scores;
    for (auto& [h, head] : layer.heads) {
      head.scores.resize(head.keys.size(), 0.0f);
      scores.insert(scores.end(), head.scores.begin(), head.scores.end());
    }
    policy_->Update(newest, scores);
    const int64_t n = newest.keys;
    for (auto& [h, head] : layer.heads) {
      head.scores.assign(scores.begin() + h * n, scores.begin() + (h + 1) * n);
      if (n <= layer.most) continue;
      int64_t worst = 0;
      for (int64_t i = 0; i < std::max<int64_t>(n - policy_->Recent(budget_), 1); ++i) {
        if (head.scores[i] <= head.scores[worst]) worst = i;
      }
      head.keys.erase(head.keys.begin() + worst);
      head.scores.erase(head.scores.begin() + worst);
    }
  }

  const DecoderSpec& spec_;
  const AttentionSpec& attention_;
  const std::unique_ptr<KvEvictionPolicy> policy_;
  const int64_t budget_;
  std::map<std::string, Row> weights_;
  std::vector<Layer> layers_;
  int64_t position_ = 0;
  bool evicts_prompt_ = false;
};

}  // namespace cadre
