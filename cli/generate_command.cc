#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "cli/as_data.h"
#include "cli/commands.h"
#include "cli/compute_flags.h"
#include "cli/model_folder.h"
#include "core/host_allocator.h"
#include "core/trace.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "serving/engine.h"
#include "serving/http/sampling_defaults.h"

namespace cadre::cli {
namespace {

struct GenerateFlags {
  std::string model, prompt;
  std::vector<int32_t> prompt_ids;
  bool has_prompt = false, json = false, ignore_eos = false;
  SamplingParams sampling{.temperature = 0, .max_tokens = 64};
  ComputeFlags compute;
};

// Gathers one request's events; the waiting thread takes them as they come.
class Collector : public EventSink {
 public:
  void OnStep(std::vector<TokenEvent> events) override {
    std::lock_guard lock(mutex_);
    for (TokenEvent& event : events) events_.push_back(std::move(event));
    wake_.notify_one();
  }

  std::vector<TokenEvent> Take() {
    std::unique_lock lock(mutex_);
    wake_.wait(lock, [this] { return !events_.empty(); });
    return std::exchange(events_, {});
  }

 private:
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<TokenEvent> events_;
};

struct Generated {
  std::vector<int32_t> ids;
  std::vector<float> logprobs;
  FinishReason finish = FinishReason::kNone;
};

// Text to the terminal as it comes, unless --json.
absl::StatusOr<Generated> Collect(Collector& sink, const Tokenizer* tokenizer, bool print) {
  Generated out;
  std::unique_ptr<StreamDecoder> decoder;
  if (tokenizer != nullptr)
    decoder = std::make_unique<StreamDecoder>(*tokenizer, /*skip_special_tokens=*/true);
  while (out.finish == FinishReason::kNone) {
    for (const TokenEvent& event : sink.Take()) {
      if (event.finish == FinishReason::kError) return event.error;
      out.finish = event.finish;
      if (event.token < 0) continue;
      out.ids.push_back(event.token);
      out.logprobs.push_back(event.logprob);
      if (print && decoder != nullptr)
        std::printf("%s", decoder->Push(event.token).c_str());
      else if (print)
        std::printf("%d ", event.token);
    }
    if (print) std::fflush(stdout);
  }
  if (print) std::printf("%s\n", decoder == nullptr ? "" : decoder->Finish().c_str());
  return out;
}

std::string FinishName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    default:
      return "cancelled";
  }
}

absl::Status CheckFlags(const GenerateFlags& flags) {
  if (flags.has_prompt == !flags.prompt_ids.empty()) {
    return InvalidArgument("--prompt, --prompt-ids: exactly one of them is needed");
  }
  if (!IsValidUtf8(flags.prompt)) {
    return InvalidArgument("--prompt: not valid UTF-8 at byte {}", ValidUtf8Prefix(flags.prompt));
  }
  const SamplingParams& s = flags.sampling;
  // Written so that no NaN passes.
  if (!(s.temperature >= 0 && s.temperature <= 100)) {
    return InvalidArgument("--temperature {}: allowed are 0 to 100", s.temperature);
  }
  if (!(s.top_p > 0 && s.top_p <= 1)) {
    return InvalidArgument("--top-p {}: allowed are values over 0 and up to 1", s.top_p);
  }
  if (!(s.min_p >= 0 && s.min_p <= 1)) {
    return InvalidArgument("--min-p {}: allowed are 0 to 1", s.min_p);
  }
  if (s.top_k < 0) return InvalidArgument("--top-k {}: at least 0 is needed", s.top_k);
  if (s.max_tokens < 1) {
    return InvalidArgument("--max-tokens {}: at least 1 is needed", s.max_tokens);
  }
  return absl::OkStatus();
}

absl::Status RunGenerate(const GenerateFlags& flags) {
  CADRE_RETURN_IF_ERROR(CheckFlags(flags));
  CADRE_ASSIGN_OR_RETURN(Compute compute, ResolveCompute(flags.compute, "generate"));
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = compute.threads};
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<Model> model,
      AsData(LoadModel(
          ctx, flags.model,
          {.dtype = compute.dtype, .weights = ForProductsAlone(compute.weights, compute.dtype)})));
  std::unique_ptr<Tokenizer> tokenizer;
  // Ids in, ids out works without a tokenizer.
  if (auto loaded = AsData(Tokenizer::Load(flags.model)); loaded.ok())
    tokenizer = *std::move(loaded);
  else if (flags.has_prompt)
    return loaded.status();
  GenerationRequest request{.id = 1, .sampling = flags.sampling};
  request.prompt = std::make_shared<std::vector<int32_t>>(
      flags.has_prompt ? tokenizer->Encode(flags.prompt, {.add_special_tokens = true})
                       : flags.prompt_ids);
  request.sampling.logprobs = 0;
  if (!flags.ignore_eos) {
    CADRE_ASSIGN_OR_RETURN(SamplingDefaults defaults, AsData(LoadSamplingDefaults(flags.model)));
    request.sampling.stop_token_ids = EndTokenIds(defaults, tokenizer.get());
  }
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                         Engine::Create(*model, {.threads = compute.threads, .max_num_seqs = 1}));
  auto sink = std::make_shared<Collector>();
  CADRE_RETURN_IF_ERROR(engine->Submit({request}, sink));
  CADRE_ASSIGN_OR_RETURN(Generated out, Collect(*sink, tokenizer.get(), !flags.json));
  if (!flags.json) return absl::OkStatus();
  nlohmann::ordered_json json;
  json["text"] =
      tokenizer == nullptr ? "" : tokenizer->Decode(out.ids, /*skip_special_tokens=*/true);
  json["ids"] = out.ids;
  json["logprobs"] = out.logprobs;
  json["finish_reason"] = FinishName(out.finish);
  std::printf("%s\n", json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  return absl::OkStatus();
}

}  // namespace

void AddGenerateCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* command = root.add_subcommand("generate", "Continue one prompt");
  command->add_option("--model", flags->model, kModelHelp)->required();
  CLI::Option* prompt = command->add_option("--prompt", flags->prompt, "Text to continue");
  command->add_option("--prompt-ids", flags->prompt_ids, "Token ids to continue: 1,2,3")
      ->delimiter(',');
  SamplingParams& sampling = flags->sampling;
  command->add_option("--max-tokens", sampling.max_tokens, "Tokens to generate at most")
      ->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0: greedy, at most 100")
      ->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "0: no limit")->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Over 0; 1: no limit")->capture_default_str();
  command->add_option("--min-p", sampling.min_p, "0: no limit, at most 1")->capture_default_str();
  command->add_option("--seed", sampling.seed, "Of the draws")->capture_default_str();
  command->add_flag("--ignore-eos", flags->ignore_eos, "Go on after an end-of-sequence token");
  command->add_flag("--json", flags->json, "One JSON document: text, ids, logprobs, finish_reason");
  AddComputeFlags(*command, &flags->compute);
  command->callback([flags, prompt, status] {
    flags->has_prompt = prompt->count() > 0;
    flags->model = ModelFolder(flags->model);
    *status = RunGenerate(*flags);
  });
}

}  // namespace cadre::cli
