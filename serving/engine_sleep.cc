// The engine's sleep: any thread asks, the engine's thread gives memory up and takes it again.
#include <algorithm>

#include "serving/engine.h"

namespace cadre {

void Engine::Sleep(int level, SleepDone done) {
  absl::Status refusal;
  if (level != 1 && level != 2) {
    refusal = InvalidArgument("sleep level: {}, allowed are 1 and 2", level);
  } else if (level == 2 && !home_->reloadable()) {
    refusal = Unimplemented("sleep level 2: the weights were not loaded from a folder");
  }
  {
    std::lock_guard lock(mutex_);
    if (refusal.ok()) refusal = Ended();
    if (refusal.ok()) sleep_.AskSleep(level, std::move(done));
  }
  if (!refusal.ok()) return done(refusal);
  wake_.notify_one();
}

void Engine::Wake(WakeDone done) {
  absl::Status refusal;
  {
    std::lock_guard lock(mutex_);
    refusal = Ended();
    if (refusal.ok()) sleep_.AskWake(std::move(done));
  }
  if (!refusal.ok()) return done(refusal);
  wake_.notify_one();
}

void Engine::CarryOut(SleepCommands commands) {
  for (SleepDone& done : commands.aborted) done(absl::AbortedError("woken before it slept"));
  if (!commands.wakes.empty()) {
    const absl::Status woken = TakeMemory();
    Settle(woken);
    for (WakeDone& done : commands.wakes) {
      if (!woken.ok()) {
        done(woken);
      } else {
        done(weight_version());
      }
    }
  }
  for (auto& [level, done] : commands.sleeps) GiveUpMemory(level);
  if (!commands.sleeps.empty()) Settle(absl::OkStatus());
  for (auto& [level, done] : commands.sleeps) done(absl::OkStatus());
}

void Engine::Settle(const absl::Status& woken) {
  std::lock_guard lock(mutex_);
  if (home_->model() != nullptr) weight_version_ = weight_version();
  sleep_.Settle(sleep_level_, Message(woken));
  last_step_ = Now();
}

void Engine::GiveUpMemory(int level) {
  if (level <= sleep_level_) return;
  // A rank that is lost is seen at the wake.
  Tell({.kind = StepKind::kSleep, .sleep_level = level}).IgnoreError();
  GiveUpOwnMemory(level);
}

void Engine::GiveUpOwnMemory(int level) {
  if (sleep_level_ == 0) lanes_->DropBytes();
  if (speculation_ != nullptr) speculation_->GiveUpMemory(level);
  if (level == 2 && home_->model() != nullptr) {
    ctx_.parameters = nullptr;
    packed_ = {};
    home_->Drop();
  }
  allocator_.Trim();
  sleep_level_ = std::max(sleep_level_, level);
}

// All ranks or none.
absl::Status Engine::TakeMemory() {
  if (options_.ranks == nullptr || sleep_level_ == 0) return TakeOwnMemory();
  const int level = sleep_level_;
  CADRE_RETURN_IF_ERROR(Tell({.kind = StepKind::kWake}));
  const absl::Status all = options_.ranks->Agree(TakeOwnMemory(), kWakeLabel);
  if (!all.ok()) GiveUpOwnMemory(level);
  return all;
}

absl::Status Engine::TakeOwnMemory() {
  if (home_->model() == nullptr) {
    CADRE_RETURN_IF_ERROR(home_->Reload());
    ctx_.parameters = &home_->model()->parameters();
    packed_ = std::move(home_->model()->packed());
    sleep_level_ = 1;
  }
  if (sleep_level_ == 0) return absl::OkStatus();
  if (speculation_ != nullptr) CADRE_RETURN_IF_ERROR(speculation_->TakeWeights());
  CADRE_RETURN_IF_ERROR(CheckKvMemory(options_.kv_cache_memory_bytes,
                                      lanes_->own_cache().pool().bytes(), options_.ranks));
  lanes_->AllocateBytes();
  if (speculation_ != nullptr) speculation_->TakeMemory();
  sleep_level_ = 0;
  return absl::OkStatus();
}

void Engine::RefuseSleepers() {
  SleepCommands commands;
  absl::Status ended;
  {
    std::lock_guard lock(mutex_);
    commands = sleep_.Take(true);
    ended = Ended();
  }
  for (SleepDone& done : commands.aborted) done(ended);
  for (WakeDone& done : commands.wakes) done(ended);
  for (auto& [level, done] : commands.sleeps) done(ended);
}

}  // namespace cadre
