#include "serving/http/openai_service.h"

#include <fmt/ranges.h>
#include <spdlog/logger.h>

#include <algorithm>
#include <ctime>
#include <limits>
#include <random>

#include "serving/http/answer_json.h"
#include "serving/http/request_observer.h"

namespace cadre {
namespace {

// Logprobs of prompts, the rivals counted in, that one answer may have: each takes some 300 bytes
// while the answer is written.
constexpr int64_t kMaxPromptLogprobs = int64_t{1} << 20;

std::optional<ApiError> CheckPromptLogprobs(const ApiRequest& request, int64_t prompt_tokens) {
  if (request.sampling.prompt_logprobs < 0) return std::nullopt;
  const int64_t most = kMaxPromptLogprobs / (int64_t{1} + request.sampling.prompt_logprobs);
  if (prompt_tokens * request.n <= most) return std::nullopt;
  return BadRequest(fmt::format("{} prompt tokens were to be answered with their logprobs and {} "
                                "rivals each, allowed are {}",
                                prompt_tokens * request.n, request.sampling.prompt_logprobs, most),
                    request.prompt_logprobs >= 0 ? "prompt_logprobs" : "logprobs", "invalid_value");
}

const std::string& TemplateOf(const ServingDeps& deps) {
  return deps.chat_template != nullptr ? deps.chat_template->source()
                                       : deps.tokenizer->chat_template();
}

// Tells the answers of this process from those of any other.
std::string RandomPrefix() {
  std::random_device device;
  return fmt::format("{:08x}{:08x}", device(), device());
}

}  // namespace

void Answer::Abandon() {
  if (!ids_.empty()) hub_->Release(ids_);
  for (uint64_t id : ids_) engine_->Cancel(id);
  ids_.clear();
}

OpenAiService::OpenAiService(const ServingDeps& deps, ServiceOptions options)
    : deps_(deps),
      options_(std::move(options)),
      started_(std::time(nullptr)),
      id_prefix_(RandomPrefix()),
      tool_format_(options_.tool_call_parser == "auto" ? DetectToolFormat(TemplateOf(deps))
                                                       : FindToolFormat(options_.tool_call_parser)),
      reasoning_(options_.reasoning_parser == "think" ||
                 (options_.reasoning_parser == "auto" &&
                  TemplateOf(deps).find(kThinkClose) != std::string::npos)),
      next_seed_(options_.seed),
      unknown_fields_(options_.log),
      prompts_(*deps.tokenizer, deps.chat_template, reasoning_),
      constraints_(*deps.tokenizer),
      hub_(std::make_shared<EventHub>(deps.engine)) {}

OpenAiService::~OpenAiService() { Stop(); }

void OpenAiService::Stop() { hub_->Stop(); }

std::optional<ApiError> OpenAiService::Prepare(const ApiEndpoint& endpoint, std::string_view body,
                                               PreparedRequest* prepared) {
  prepared->endpoint = &endpoint;
  ApiRequest& request = prepared->request;
  const ModelInfo info = deps_.engine->Info();
  const SchemaContext context{.defaults = options_.defaults,
                              .limits = options_.limits,
                              .vocab_size = info.vocab_size,
                              .max_context = info.max_context,
                              .takes_priority = info.takes_priority,
                              .hidden_size = info.hidden_size};
  std::optional<ApiError> error = endpoint.parse(body, context, &request);
  if (error) return error;
  if (!request.model.empty() && (error = CheckModel(request.model))) return error;
  unknown_fields_.Log(request.unknown_fields);
  PromptReader::Prompts prompts;
  const bool counts = static_cast<bool>(endpoint.answer_text);
  if ((error = prompts_.Read(request, info, counts, &prompts))) return error;
  prepared->facts.prompts = std::move(prompts.all);
  prepared->thinking = prompts.thinking;
  if (counts) {
    return endpoint.answer_text(
        {*deps_.tokenizer, request, prepared->facts.prompts, info.max_context},
        &prepared->body.emplace());
  }
  if ((error = FillSampling(prepared))) return error;
  if ((error = Constrain(prepared))) return error;
  Identify(prepared);
  return std::nullopt;
}

// Of an answer that its request does not bound: what the context and the KV cache have room for,
// and no more than the model's folder says; of one that keeps to a budget, what fits whatever its
// policy lets go. A prompt that itself is too long for the cache is the engine's to refuse or to
// read within its budget.
int OpenAiService::OpenMaxTokens(const ApiRequest& request, size_t prompt_tokens) const {
  const ModelInfo info = deps_.engine->Info();
  const auto prompt = static_cast<int>(prompt_tokens);
  const bool fits = prompt < info.max_sequence;
  const int room = (fits ? info.max_sequence : info.max_context) - prompt;
  const int most = options_.defaults.max_new_tokens;
  return most == 0 ? room : std::min(room, std::max(most, request.sampling.min_tokens));
}

std::optional<ApiError> OpenAiService::FillSampling(PreparedRequest* prepared) {
  ApiRequest& request = prepared->request;
  int context = deps_.engine->Info().max_context;
  size_t longest = 0, prompt_tokens = 0;
  for (const auto& prompt : prepared->facts.prompts) {
    longest = std::max(longest, prompt.ids->size());
    prompt_tokens += prompt.ids->size();
  }
  int64_t room = int64_t{context} - static_cast<int64_t>(longest);
  if (request.max_tokens.value_or(1) > room) {
    return BadRequest(
        fmt::format("the context is {} tokens: the prompt has {} and {} were asked for", context,
                    longest, request.max_tokens.value_or(1)),
        request.input_field, "context_length_exceeded");
  }
  SamplingParams& sampling = request.sampling;
  sampling.max_tokens = request.max_tokens ? *request.max_tokens : OpenMaxTokens(request, longest);
  sampling.prompt_logprobs = request.prompt_logprobs;
  if (request.echo && !request.chat) {
    sampling.prompt_logprobs = std::max(sampling.prompt_logprobs, sampling.logprobs);
  }
  auto error = CheckPromptLogprobs(request, static_cast<int64_t>(prompt_tokens));
  if (error) return error;
  if (sampling.min_tokens > sampling.max_tokens) {
    return BadRequest(fmt::format("'min_tokens' is {}, more than 'max_tokens', {}",
                                  sampling.min_tokens, sampling.max_tokens),
                      "min_tokens", "invalid_value");
  }
  if ((error = FillStops(&request))) return error;
  if (!request.has_seed) sampling.seed = next_seed_.fetch_add(1);
  AddSequences(prepared);
  return std::nullopt;
}

std::optional<ApiError> OpenAiService::FillStops(ApiRequest* request) const {
  const SamplingParams& sampling = request->sampling;
  auto& stops = request->sampling.stop_token_ids;
  if (!request->ignore_eos) {
    const std::vector<int32_t> ends = EndTokenIds(options_.defaults, deps_.tokenizer);
    stops.insert(stops.end(), ends.begin(), ends.end());
  }
  std::sort(stops.begin(), stops.end());
  stops.erase(std::unique(stops.begin(), stops.end()), stops.end());
  const auto beyond = std::lower_bound(stops.begin(), stops.end(), deps_.engine->Info().vocab_size);
  if (sampling.min_tokens > 0 && beyond - stops.begin() >= deps_.engine->Info().vocab_size) {
    return BadRequest(
        fmt::format("'min_tokens' is {}, and every token is a stop token", sampling.min_tokens),
        "min_tokens", "invalid_value");
  }
  return std::nullopt;
}

void OpenAiService::AddSequences(PreparedRequest* prepared) {
  const ApiRequest& request = prepared->request;
  for (const auto& prompt : prepared->facts.prompts) {
    for (int choice = 0; choice < request.n; ++choice) {
      GenerationRequest sequence{.id = next_sequence_.fetch_add(1),
                                 .priority = request.priority,
                                 .prompt = prompt.ids,
                                 .sampling = request.sampling,
                                 .cache_salt = request.cache_salt,
                                 .pooling = request.embeds ? options_.pooling : Pooling::kNone,
                                 .kv_budget = request.kv_budget,
                                 .kv_eviction = request.kv_eviction,
                                 .tenant = prepared->call ? prepared->call->key : std::string()};
      sequence.sampling.choice = static_cast<uint32_t>(choice);
      prepared->sequences.push_back(std::move(sequence));
    }
  }
}

std::optional<ApiError> OpenAiService::Constrain(PreparedRequest* prepared) {
  const ApiRequest& request = prepared->request;
  const bool tools = request.tools.choice != ToolRequest::Choice::kNone;
  if (tools && tool_format_ == nullptr) {
    return BadRequest(
        fmt::format(
            "'tools' is not supported with this model: its chat template speaks none of {}, "
            "and the server's tool_call_parser names none",
            ToolFormatNames()),
        "tools", "unsupported_parameter");
  }
  MessageFormat& message = prepared->facts.message;
  message = {.reasoning = request.chat && reasoning_ && prepared->thinking != Thinking::kDone,
             .begins_in_reasoning = prepared->thinking == Thinking::kOpen,
             .tools = tools ? tool_format_ : nullptr,
             .parallel_calls = request.tools.parallel};
  std::shared_ptr<const CompiledGrammar> grammar;
  if (auto error = constraints_.Find(request, message, &grammar)) return error;
  for (GenerationRequest& sequence : prepared->sequences) sequence.grammar = grammar;
  return std::nullopt;
}

void OpenAiService::Identify(PreparedRequest* prepared) {
  const ApiRequest& request = prepared->request;
  AnswerFacts& facts = prepared->facts;
  std::string unique = request.request_id.empty()
                           ? fmt::format("{}{:x}", id_prefix_, next_answer_.fetch_add(1))
                           : request.request_id;
  facts.id = std::string(prepared->endpoint->id_prefix) + unique;
  facts.created = std::time(nullptr);
  facts.model = request.model.empty() ? options_.served_model_names.front() : request.model;
  facts.fingerprint = fmt::format("cadre-w{}", deps_.engine->Info().weight_version);
  facts.include_usage = request.include_usage;
  facts.continuous_usage = request.continuous_usage;
  facts.logprobs = request.sampling.logprobs >= 0;
  facts.prompt_logprobs = request.prompt_logprobs;
  facts.return_token_ids = request.return_token_ids;
  facts.base64 = request.base64;
  facts.dimensions = request.dimensions;
  facts.repeated = request.repeated;
  if (request.echo && !request.chat) {
    facts.echo_logprobs = request.sampling.logprobs;
    const bool ids = std::holds_alternative<std::vector<int32_t>>(request.prompts.front());
    facts.echo_skips_special = request.skip_special_tokens || !ids;
  }
  facts.n = request.n;
  facts.echo = request.echo;
}

EventHub::Route OpenAiService::MakeRoute(const PreparedRequest& prepared, size_t choice,
                                         const Answer& answer) {
  const ApiRequest& request = prepared.request;
  ChoiceDecoder::Options options{
      .skip_special_tokens =
          request.skip_special_tokens && !constraints_.NeedsMarkers(prepared.facts.message),
      .continues_text = true,
      .logprobs = prepared.facts.logprobs,
      .ending_logprobs = prepared.facts.echo_logprobs >= 0,
      .stop = request.stop,
      .min_tokens = request.sampling.min_tokens};
  return {.id = prepared.sequences[choice].id,
          .choice = choice,
          .decoder = std::make_unique<ChoiceDecoder>(*deps_.tokenizer, std::move(options)),
          .inbox = answer.inbox,
          .observe = RequestObserver{.metrics = &metrics_,
                                     .trace = deps_.trace,
                                     .call = prepared.call,
                                     .tally = answer.tally,
                                     .arrived_ns = prepared.arrived_ns}};
}

std::optional<ApiError> OpenAiService::Admit(PreparedRequest prepared, std::function<void()> wake,
                                             std::unique_ptr<Answer>* answer) {
  const std::string input_field = prepared.request.input_field;
  auto result = std::make_unique<Answer>(deps_.engine, hub_.get());
  result->stream = prepared.request.stream;
  // Only a stream waits for its client; a whole answer is gathered anyway.
  const size_t bound =
      result->stream ? options_.max_unsent_bytes : std::numeric_limits<size_t>::max();
  result->inbox = std::make_shared<AnswerInbox>(bound, std::move(wake));
  ServingMetrics::Request counted{.n = prepared.request.n,
                                  .max_tokens = prepared.request.sampling.max_tokens};
  for (const auto& prompt : prepared.facts.prompts) {
    counted.prompt_tokens += static_cast<int>(prompt.ids->size());
  }
  result->tally->prompt_tokens = counted.prompt_tokens;
  std::vector<EventHub::Route> routes;
  std::vector<uint64_t> ids;
  for (size_t i = 0; i < prepared.sequences.size(); ++i) {
    ids.push_back(prepared.sequences[i].id);
    routes.push_back(MakeRoute(prepared, i, *result));
  }
  hub_->Add(std::move(routes));
  absl::Status admitted = deps_.engine->Submit(std::move(prepared.sequences), hub_);
  if (!admitted.ok()) {
    hub_->Remove(ids);
    ApiError error = FromStatus(admitted);
    if (error.param == "prompt") error.param = input_field;
    return error;
  }
  metrics_.Admitted(counted);
  result->ids_ = std::move(ids);
  result->writer = prepared.endpoint->make_writer(*deps_.tokenizer, std::move(prepared.facts));
  *answer = std::move(result);
  return std::nullopt;
}

EngineHealth OpenAiService::Health() {
  EngineHealth health = deps_.engine->Health();
  std::lock_guard lock(failure_mutex_);
  const bool news = health.failure != failure_logged_ && !health.failure.empty();
  if (news && options_.log != nullptr) {
    options_.log->error("not ready: {}: {}", health.reason, health.failure);
  }
  failure_logged_ = health.failure;
  return health;
}

std::optional<ApiError> OpenAiService::CheckModel(std::string_view name) const {
  const auto& names = options_.served_model_names;
  if (std::ranges::find(names, name) != names.end()) return std::nullopt;
  return ApiError{404,
                  fmt::format("the model '{}' does not exist; this server has '{}'",
                              name.substr(0, 200), fmt::join(names, "', '")),
                  "model", "model_not_found"};
}

std::string OpenAiService::Model(std::string_view name) const {
  return Dump(ModelJson(std::string(name), started_, deps_.engine->Info().max_context));
}

std::string OpenAiService::Models() const {
  return ModelsBody(options_.served_model_names, started_, deps_.engine->Info().max_context);
}

std::string OpenAiService::Version() const { return Dump({{"version", options_.version}}); }

std::string OpenAiService::MetricsText(const ServingMetrics::Server& server) {
  return metrics_.Scrape(deps_.engine->Stats(), deps_.engine->Health(), deps_.engine->Info(),
                         server);
}

}  // namespace cadre
