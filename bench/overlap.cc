// What overlapping hides of communication, over a link as fast as computing. bench/overlap.sh makes
// the link and runs this, which forks two ranks, one a core:
//   bench_overlap rate tp|dp                            prints the rate, for tc
//   bench_overlap tp|dp --netns cadre-a,cadre-b [--rounds 3]
// tp: the standard wiring against ladder. dp: gradients reduced beside the backward pass.
//
// Blocked: the time that the computing thread waits for communication. The rate is such that what a
// step of the standard wiring sends takes as long as its computing (tp), or what is reduced of
// gradients as long as the backward pass (dp).
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "bench/fork_ranks.h"
#include "bench/peak.h"
#include "core/ops/elementwise.h"
#include "core/ops/gemm.h"
#include "core/random.h"
#include "model/initialize.h"
#include "model/model.h"
#include "parallel/test_group.h"
#include "proto/train_config.pb.h"
#include "training/optimizer.h"
#include "training/training_ranks.h"

namespace cadre::bench {
namespace {

constexpr int64_t kSequence = 1024, kTokens = 2 * kSequence;
constexpr int kSteps = 4;

struct Options {
  std::string what = "tp";
  bool rate = false;
  int rounds = 3;  // of kSteps steps of each kind
  std::vector<std::string> namespaces;
};

// What one rank's groups did.
struct Meter {
  struct Done {
    int64_t numel;
    DType dtype;
  };
  double blocked = 0;      // seconds in Wait
  int64_t sent = 0;        // bytes to the other rank
  std::vector<Done> sums;  // all-reduces and reduce-scatters
};

class MeteredWork : public Work {
 public:
  MeteredWork(WorkPtr work, Meter& meter) : work_(std::move(work)), meter_(meter) {}
  absl::Status Wait() override {
    const double start = Now();
    absl::Status status = work_->Wait();
    meter_.blocked += Now() - start;
    return status;
  }
  bool done() const override { return work_->done(); }

 private:
  WorkPtr work_;
  Meter& meter_;
};

class MeteredGroup : public ForwardingGroup {
 public:
  MeteredGroup(std::unique_ptr<Communicator> group, Meter& meter)
      : ForwardingGroup(std::move(group)), meter_(meter) {}

  WorkPtr AllReduce(const Tensor& buffer, ReduceOp op, const OpLabel& label) override {
    Count(buffer, 2, true);
    return Metered(ForwardingGroup::AllReduce(buffer, op, label));
  }
  WorkPtr ReduceScatter(const Tensor& input, const Tensor& output, ReduceOp op,
                        const OpLabel& label) override {
    Count(input, 1, true);
    return Metered(ForwardingGroup::ReduceScatter(input, output, op, label));
  }
  WorkPtr ReduceScatterV(const Tensor& input, const Tensor& output, std::span<const int64_t> rows,
                         ReduceOp op, const OpLabel& label) override {
    Count(input, 1, true);
    return Metered(ForwardingGroup::ReduceScatterV(input, output, rows, op, label));
  }
  WorkPtr AllGather(const Tensor& input, const Tensor& output, const OpLabel& label) override {
    Count(output, 1, false);
    return Metered(ForwardingGroup::AllGather(input, output, label));
  }

 private:
  WorkPtr Metered(WorkPtr work) { return std::make_shared<MeteredWork>(std::move(work), meter_); }
  // `passes` over the whole, of which a rank sends all but its own part.
  void Count(const Tensor& whole, int passes, bool sum) {
    meter_.sent += static_cast<int64_t>(whole.bytes()) * passes * (size() - 1) / size();
    if (sum) meter_.sums.push_back({whole.numel(), whole.dtype()});
  }

  Meter& meter_;
};

HfConfig Config(bool ladder) {
  HfConfig hf;
  config::ModelConfig& model = hf.model;
  model.set_model_type("llama");
  model.set_vocab_size(2048);
  model.set_hidden_size(768);
  model.set_num_hidden_layers(8);
  model.set_num_attention_heads(12);
  model.set_intermediate_size(2048);
  model.set_max_position_embeddings(kSequence);
  if (ladder) model.set_residual("ladder");
  return hf;
}

struct Setup {
  bool tensor = false;  // the ranks share the model; else each has samples of its own
  bool sequence_parallel = false;
  bool ladder = false;
  bool reduce = true;  // gradients are reduced and weights updated
};

// One rank's model, and steps of it.
class Run {
 public:
  Run(World& world, const Setup& setup) : reduce_(setup.reduce) {
    Layout layout;
    (setup.tensor ? layout.tp : layout.dp) = world.size();
    layout.etp = layout.tp;
    layout.edp = layout.dp;
    layout.sequence_parallel = setup.sequence_parallel;
    ranks_.emplace(&world, layout, [this](std::unique_ptr<Communicator> group) {
      return std::make_unique<MeteredGroup>(std::move(group), meter_);
    });
    ctx_.groups = ranks_->groups();
    ModelOptions options{.gradients = true};
    options.decoder.part = ranks_->part();
    model_ = std::move(*CreateModel(ctx_, Config(setup.ladder), options));
    ctx_.parameters = &model_->parameters();
    InitializeParameters(ctx_, 1);
    std::vector<Shard> owned;
    if (reduce_) {
      ranks_->Serve(model_->parameters(), {.allocator = &allocator_});
      owned = ranks_->OwnedShards();
    }
    optimizer_ = std::move(
        *MakeOptimizer(config::OptimizerConfig(), model_->parameters(), allocator_, owned));
    optimizer_->AdoptWeights();
    MakeBatch(layout.dp > 1 ? world.rank() : 0);
  }
  ~Run() { ranks_->Leave(); }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  struct Seconds {
    double wall = 0, backward = 0, blocked = 0;
    int64_t sent = 0;
  };
  Seconds Step() {
    model_->parameters().ZeroGradients();
    meter_ = {};
    Seconds seconds;
    const double start = Now();
    Tape tape(&ops::Accumulate);
    ctx_.tape = &tape;
    const DecoderOutput out = model_->decoder().Forward(ctx_, batch_);
    const auto result = model_->decoder().Loss(
        ctx_, out.hidden, {.targets = targets_, .scale = 1.0 / static_cast<double>(kTokens)});
    const double one = 1;
    tape.Seed(result.loss.slot, Tensor::Of<double>(allocator_, {1}, std::span(&one, 1)));
    const double backward = Now();
    tape.Backward(ctx_);
    ctx_.tape = nullptr;
    seconds.backward = Now() - backward;
    if (reduce_) {
      CADRE_CHECK(ranks_->FinishGradients().ok(), "the ranks lost one another");
      seconds.blocked = meter_.blocked;
      seconds.sent = meter_.sent;
      optimizer_->Step(ctx_, {.lr = 1e-4, .gradient_scale = 1});
    }
    seconds.wall = Now() - start;
    return seconds;
  }

  // The sums of the last step again, all at once, with nothing computed meanwhile.
  double Alone() {
    const std::vector<Meter::Done> sums = meter_.sums;
    std::vector<Tensor> buffers;
    for (const Meter::Done& sum : sums) {
      buffers.push_back(Tensor::Zeros(allocator_, {sum.numel}, sum.dtype));
    }
    (void)ranks_->Meet({"alone"});
    const double start = Now();
    std::vector<WorkPtr> works;
    for (const Tensor& buffer : buffers) {
      works.push_back(ctx_.groups->dp_cp->AllReduce(buffer, ReduceOp::kSum, {"alone"}));
    }
    for (const WorkPtr& work : works) CADRE_CHECK(work->Wait().ok(), "the ranks lost one another");
    return Now() - start;
  }

 private:
  void MakeBatch(int rank) {
    const RandomKey key(static_cast<uint64_t>(rank), "overlap");
    std::vector<std::vector<int32_t>> rows(kTokens / kSequence);
    std::vector<int32_t> targets;
    for (int64_t i = 0; i < kTokens; ++i) {
      rows[static_cast<size_t>(i / kSequence)].push_back(static_cast<int32_t>(key.U64(i) % 2048));
      targets.push_back(static_cast<int32_t>(key.U64(i + 1) % 2048));
    }
    batch_ = PackSequences(allocator_, rows);
    targets_ = Tensor::Of<int32_t>(allocator_, {kTokens}, targets);
  }

  const bool reduce_;
  Meter meter_;
  HostAllocator allocator_;
  PackedWeights packed_;
  Context ctx_{.allocator = &allocator_, .packed = &packed_};
  std::optional<TrainingRanks> ranks_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<Optimizer> optimizer_;
  Batch batch_;
  Tensor targets_;
};

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// Of many steps, each figure's median, and the walls' extremes.
struct Figures {
  Run::Seconds median;
  double least = 0, most = 0;
};
Figures Summary(const std::vector<Run::Seconds>& all) {
  const auto median = [&](double Run::Seconds::*field) {
    std::vector<double> values;
    for (const Run::Seconds& one : all) values.push_back(one.*field);
    return Median(values);
  };
  const auto wall = [](const Run::Seconds& s) { return s.wall; };
  return {{median(&Run::Seconds::wall), median(&Run::Seconds::backward),
           median(&Run::Seconds::blocked), all.front().sent},
          std::ranges::min(all, {}, wall).wall,
          std::ranges::max(all, {}, wall).wall};
}

void Steps(Run& run, std::vector<Run::Seconds>* all) {
  run.Step();
  for (int i = 0; i < kSteps; ++i) all->push_back(run.Step());
}

void Print(const char* name, const Figures& f) {
  std::printf("%-28s step %.3f s (%.3f to %.3f), blocked %.3f s, sent %.1f MB\n", name,
              f.median.wall, f.least, f.most, f.median.blocked,
              static_cast<double>(f.median.sent) / 1e6);
}

// One a line, for `tc`.
void PrintRate(double bytes, double seconds) {
  std::printf("%.0fmbit\n", 8 * bytes / seconds / 1e6);
}

void CompareWirings(World& world, const Options& options, bool print) {
  const bool rate = options.rate;
  const std::vector<std::pair<const char*, Setup>> setups = {
      {"standard", {.tensor = true, .sequence_parallel = true}},
      {"standard, all tokens on all", {.tensor = true}},
      {"ladder", {.tensor = true, .ladder = true}}};
  std::vector<std::vector<Run::Seconds>> all(setups.size());
  for (int round = 0; round < (rate ? 1 : options.rounds); ++round) {
    for (size_t i = 0; i < (rate ? 1 : setups.size()); ++i) {
      Run run(world, setups[i].second);
      Steps(run, &all[i]);
    }
  }
  if (!print) return;
  const Figures standard = Summary(all[0]);
  const double computing = standard.median.wall - standard.median.blocked;
  if (rate) return PrintRate(static_cast<double>(standard.median.sent), computing);
  for (size_t i = 0; i < setups.size(); ++i) Print(setups[i].first, Summary(all[i]));
  std::printf("standard: computing %.3f s, communication %.3f s, %.2f of it\n", computing,
              standard.median.blocked, standard.median.blocked / computing);
  std::printf("ladder: %.2f times the step rate of standard\n",
              standard.median.wall / Summary(all[2]).median.wall);
}

void ReduceBesideBackward(World& world, const Options& options, bool print) {
  const bool rate = options.rate;
  std::vector<Run::Seconds> alone, together;
  std::vector<double> sums;
  {
    Run run(world, {.reduce = false});
    Steps(run, &alone);
  }
  for (int round = 0; round < (rate ? 1 : options.rounds); ++round) {
    Run run(world, {});
    Steps(run, &together);
    sums.push_back(run.Alone());
  }
  if (!print) return;
  const Figures one = Summary(alone), two = Summary(together);
  if (rate) return PrintRate(static_cast<double>(two.median.sent), one.median.backward);
  Print("forward and backward alone", one);
  Print("with reduction and update", two);
  const double whole = Median(sums);
  std::printf("backward alone %.3f s, beside the reduction %.3f s\n", one.median.backward,
              two.median.backward);
  std::printf("the same reductions alone %.3f s, blocked %.3f s: %.0f %% hidden\n", whole,
              two.median.blocked, 100 * (1 - two.median.blocked / whole));
}

int RunRank(const Options& options, Bootstrap& bootstrap) {
  WorldOptions world_options;
  if (!options.namespaces.empty()) world_options.transport = TransportKind::kUcx;
  auto world = World::Create(bootstrap, world_options);
  if (!world.ok()) {
    std::fprintf(stderr, "error: %s\n", Message(world.status()).c_str());
    return 1;
  }
  const bool print = bootstrap.rank() == 0;
  if (options.what == "tp") CompareWirings(**world, options, print);
  if (options.what == "dp") ReduceBesideBackward(**world, options, print);
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  std::vector<std::string> words(argv + 1, argv + argc);
  if (!words.empty() && words.front() == "rate") {
    options.rate = true;
    words.erase(words.begin());
  }
  if (!words.empty()) options.what = words.front();
  bool known = (options.what == "tp" || options.what == "dp") && words.size() % 2 == 1;
  for (size_t i = 1; i + 1 < words.size(); i += 2) {
    std::stringstream value(words[i + 1]);
    if (words[i] == "--netns") {
      for (std::string name; std::getline(value, name, ',');) options.namespaces.push_back(name);
    } else {
      known = known && words[i] == "--rounds" && value >> options.rounds && options.rounds > 0;
    }
  }
  if (!known) {
    std::fprintf(stderr, "error: the head of bench/overlap.cc says how this is called\n");
    return 2;
  }
  return ForkRanks({.ranks = 2, .namespaces = options.namespaces},
                   [&](Bootstrap& bootstrap) { return RunRank(options, bootstrap); });
}

}  // namespace
}  // namespace cadre::bench

int main(int argc, char** argv) { return cadre::bench::Main(argc, argv); }
