#include "serving/lanes.h"

#include <algorithm>

namespace cadre {

Lanes::Lanes(Allocator& allocator, const KvPlan& kv, Options options) {
  CADRE_CHECK(options.lanes == 1 || options.tiers == nullptr, "tiers of {} lanes", options.lanes);
  std::vector<ops::KvLayout> layouts = kv.layouts;
  for (int i = 0; i < options.lanes; ++i) {
    Lane& lane = lanes_.emplace_back();
    lane.cache = std::make_unique<KvCache>(allocator, layouts, kv.blocks,
                                           KvCacheOptions{.prefix_caching = options.prefix_caching,
                                                          .tiers = std::move(options.tiers)});
    lane.scheduler = std::make_unique<Scheduler>(options.scheduler, *lane.cache);
    // Other ranks have the bytes.
    for (ops::KvLayout& layout : layouts) layout.kv_heads = 0;
  }
}

int64_t Lanes::blocks() const { return std::ssize(lanes_) * lanes_.front().cache->blocks(); }

double Lanes::kv_usage() const {
  double usage = 0;
  for (const Lane& lane : lanes_) usage += lane.cache->usage();
  return usage / static_cast<double>(lanes_.size());
}

void Lanes::SetWeightVersion(int64_t version) {
  for (Lane& lane : lanes_) lane.cache->SetWeightVersion(version);
}

void Lanes::DropBytes() {
  for (Lane& lane : lanes_) lane.cache->DropBytes();
}

void Lanes::AllocateBytes() {
  for (Lane& lane : lanes_) lane.cache->AllocateBytes();
}

int Lanes::Choose(const Sequence& sequence) const {
  if (sequence.request.prompt == last_prompt_) return last_lane_;
  const auto sequences = [](const Lane& lane) {
    return lane.scheduler->running() + lane.scheduler->waiting();
  };
  return static_cast<int>(std::ranges::min_element(lanes_, {}, sequences) - lanes_.begin());
}

void Lanes::Add(std::unique_ptr<Sequence> sequence) {
  sequence->lane = last_lane_ = Choose(*sequence);
  last_prompt_ = sequence->request.prompt;
  lanes_[static_cast<size_t>(last_lane_)].scheduler->Add(std::move(sequence));
}

std::vector<ScheduledChunk> Lanes::Plan(double now) {
  std::vector<ScheduledChunk> chunks;
  for (Lane& lane : lanes_) {
    std::ranges::copy(lane.scheduler->Plan(now), std::back_inserter(chunks));
  }
  return chunks;
}

std::unique_ptr<Sequence> Lanes::Remove(uint64_t id) {
  for (Lane& lane : lanes_) {
    if (std::unique_ptr<Sequence> sequence = lane.scheduler->Remove(id)) return sequence;
  }
  return nullptr;
}

std::vector<uint64_t> Lanes::Ids() const {
  std::vector<uint64_t> ids;
  for (const Lane& lane : lanes_) {
    std::ranges::copy(lane.scheduler->Ids(), std::back_inserter(ids));
  }
  return ids;
}

std::vector<StepPlan> Lanes::BuildPlans(std::span<const ScheduledChunk> chunks) {
  std::vector<StepPlan> plans;
  for (int lane = 0; lane < count(); ++lane) {
    const auto end = std::ranges::find_if(
        chunks, [&](const ScheduledChunk& chunk) { return chunk.sequence->lane != lane; });
    const auto size = static_cast<size_t>(end - chunks.begin());
    plans.push_back(BuildStepPlan(chunks.first(size), *lanes_[static_cast<size_t>(lane)].cache));
    chunks = chunks.subspan(size);
  }
  CADRE_CHECK(chunks.empty(), "{} chunks are of no lane", chunks.size());
  return plans;
}

}  // namespace cadre
