// Random load on the scheduler, whatever its policy and options: blocks are conserved, bounds kept,
// tokens in their order, and everything ends.
#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <memory>
#include <set>
#include <vector>

#include "serving/scheduler_fixture.h"

namespace cadre {
namespace {

struct Load {
  int64_t blocks;
  SchedulerOptions options;
};

Load DrawLoad() {
  Load load;
  load.blocks = *rc::gen::inRange<int64_t>(3, 40);
  load.options.max_context = load.blocks * SchedulerRig::kBlockSize;
  load.options.max_num_seqs = *rc::gen::inRange(1, 12);
  load.options.max_num_batched_tokens = *rc::gen::inRange<int64_t>(1, 80);
  load.options.max_num_mixed_tokens = *rc::gen::inRange<int64_t>(1, 80);
  load.options.chunked_prefill = *rc::gen::arbitrary<bool>();
  load.options.growth_reserve = *rc::gen::element<int64_t>(0, 1, 16, 64);
  load.options.queue.policy = *rc::gen::element(
      SchedulingPolicy::kFcfs, SchedulingPolicy::kPriority, SchedulingPolicy::kFair);
  return load;
}

SchedulerRig::Ask DrawAsk(uint64_t id, int64_t context) {
  const int64_t total = *rc::gen::inRange<int64_t>(2, context + 1);
  const int64_t prompt = *rc::gen::inRange<int64_t>(1, total);
  return {.id = id,
          .prompt = prompt,
          .max_tokens = static_cast<int>(total - prompt),
          .priority = *rc::gen::inRange(-2, 3),
          .tenant = *rc::gen::element<std::string>("a", "b", "c")};
}

// Some ask for what others did: choices share their prompt, strangers begin alike.
GenerationRequest DrawRequest(uint64_t id, const Load& load,
                              std::vector<std::shared_ptr<const std::vector<int32_t>>>* prompts) {
  const SchedulerRig::Ask ask = DrawAsk(id, load.options.max_context);
  GenerationRequest request{.id = id,
                            .priority = ask.priority,
                            .sampling = {.max_tokens = ask.max_tokens},
                            .cache_salt = *rc::gen::element<std::string>("", "", "s"),
                            .tenant = ask.tenant};
  if (!prompts->empty() && *rc::gen::inRange(0, 3) == 0) {
    request.prompt = *rc::gen::elementOf(*prompts);
    const auto room = load.options.max_context - std::ssize(*request.prompt);
    request.sampling.max_tokens =
        static_cast<int>(std::min<int64_t>(ask.max_tokens, std::max<int64_t>(room, 1)));
    request.sampling.choice = static_cast<uint32_t>(id);
    return request;
  }
  auto prompt = std::make_shared<std::vector<int32_t>>(static_cast<size_t>(ask.prompt), 1);
  if (*rc::gen::arbitrary<bool>()) {
    const auto begin = static_cast<size_t>(*rc::gen::inRange<int64_t>(0, ask.prompt));
    std::fill(prompt->begin() + static_cast<int64_t>(begin), prompt->end(),
              static_cast<int32_t>(id + 1));
  }
  request.prompt = prompt;
  prompts->push_back(prompt);
  return request;
}

void CheckStep(const Load& load, SchedulerRig& rig, const SchedulerRig::Ran& ran) {
  int64_t tokens = 0;
  std::set<uint64_t> ids;
  for (const auto& [id, count] : ran) {
    tokens += count;
    RC_ASSERT(ids.insert(id).second);
  }
  RC_ASSERT(rig.scheduler().running() <= load.options.max_num_seqs);
  // A whole prompt over the budget runs, but alone.
  const bool alone = !load.options.chunked_prefill && ran.size() == 1;
  RC_ASSERT(tokens <= load.options.max_num_batched_tokens || alone);
}

TEST(SchedulerProperties, HoldUnderAnyLoad) {
  const bool holds = rc::check([] {
    const Load load = DrawLoad();
    SchedulerRig rig(load.blocks, load.options);
    const int count = *rc::gen::inRange(1, 15);
    std::set<uint64_t> open;
    std::vector<std::shared_ptr<const std::vector<int32_t>>> prompts;
    uint64_t next = 0;
    int64_t work = 0, steps = 0;
    while (next < static_cast<uint64_t>(count) || !open.empty()) {
      if (next < static_cast<uint64_t>(count) && (open.empty() || *rc::gen::inRange(0, 3) == 0)) {
        GenerationRequest request = DrawRequest(++next, load, &prompts);
        const int64_t tokens = std::ssize(*request.prompt);
        RC_ASSERT(rig.scheduler().Admissible(tokens, request.sampling).ok());
        work += tokens + request.sampling.max_tokens;
        open.insert(request.id);
        rig.AddRequest(std::move(request));
      }
      if (!open.empty() && *rc::gen::inRange(0, 40) == 0) {
        RC_ASSERT(rig.scheduler().Remove(*open.begin()) != nullptr);
        open.erase(open.begin());
      }
      const int64_t before = static_cast<int64_t>(rig.ended().size());
      const SchedulerRig::Ran ran = rig.StepAndEnd();
      CheckStep(load, rig, ran);
      for (size_t i = static_cast<size_t>(before); i < rig.ended().size(); ++i) {
        open.erase(rig.ended()[i]);
      }
      RC_ASSERT(!ran.empty() || open.empty());  // no step does nothing while something is to do
      // Nobody starves: the first in rank computes in every step, so all work, done one after the
      // other, is the most that it can take.
      steps += 1;
      RC_ASSERT(steps <= 4 * work + 100);
    }
    RC_ASSERT(rig.cache().free_blocks() == load.blocks);
    RC_ASSERT(rig.scheduler().running() + rig.scheduler().waiting() == 0);
  });
  EXPECT_TRUE(holds);
}

}  // namespace
}  // namespace cadre
