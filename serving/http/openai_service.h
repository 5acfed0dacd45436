// From a request's body to sequences in the engine, and back to an answer: what the HTTP layer
// calls. Knows tokenizer, template and engine; knows nothing of sockets.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/chat_template.h"
#include "model/tokenizer.h"
#include "serving/http/answer_writer.h"
#include "serving/http/api_endpoint.h"
#include "serving/http/api_schema.h"
#include "serving/http/call_info.h"
#include "serving/http/event_hub.h"
#include "serving/http/metrics.h"
#include "serving/http/prompt_reader.h"
#include "serving/http/request_observer.h"
#include "serving/http/text_constraints.h"
#include "serving/http/unknown_fields.h"
#include "serving/request.h"

namespace spdlog {
class logger;
}

namespace cadre {

// What the front works with; everything outlives the server's Stop.
struct ServingDeps {
  const Tokenizer* tokenizer = nullptr;
  const ChatTemplate* chat_template = nullptr;  // null: chat requests are 400
  EngineClient* engine = nullptr;
  Trace* trace = nullptr;  // null: off; gets a span for each phase of a request
};

struct ServiceOptions {
  std::vector<std::string> served_model_names = {"model"};  // the first is what answers say
  SamplingDefaults defaults;
  SchemaLimits limits;
  Pooling pooling = Pooling::kLast;  // of /v1/embeddings
  std::string version;               // what /version says
  // hermes, llama3_json, mistral; auto: what the model's chat template speaks; none.
  std::string tool_call_parser = "auto";
  // think: <think>...</think> becomes reasoning_content; auto: where the model's chat template
  // knows the tag; none.
  std::string reasoning_parser = "auto";
  // Of the requests without a seed: they draw seed, seed + 1, ... in the order they come.
  uint64_t seed = 0;
  size_t max_unsent_bytes = size_t{1} << 20;  // text waiting for a slow client, per answer
  std::shared_ptr<spdlog::logger> log;        // null: nothing is told
};

// One admitted request. Used by one thread at a time; the destructor cancels what still runs.
class Answer {
 public:
  Answer(EngineClient* engine, EventHub* hub) : engine_(engine), hub_(hub) {}
  ~Answer() { Abandon(); }
  Answer(const Answer&) = delete;
  Answer& operator=(const Answer&) = delete;

  bool stream = false;
  std::shared_ptr<AnswerWriter> writer;  // also of work on the front pool that is under way
  std::shared_ptr<AnswerInbox> inbox;
  const std::shared_ptr<AnswerTally> tally = std::make_shared<AnswerTally>();

  // Cancels all sequences: the client is gone, or the answer is complete.
  void Abandon();

 private:
  friend class OpenAiService;
  EngineClient* engine_;
  EventHub* hub_;
  std::vector<uint64_t> ids_;
};

// A request that is parsed, rendered and tokenized, not yet admitted.
struct PreparedRequest {
  // Set by whoever calls Prepare.
  std::shared_ptr<const CallInfo> call;
  int64_t arrived_ns = 0;  // steady clock: the request's header was read
  const ApiEndpoint* endpoint = nullptr;
  ApiRequest request;
  AnswerFacts facts;
  std::vector<GenerationRequest> sequences;
  std::optional<std::string> body;  // the whole answer, where no sequence is needed for it
  Thinking thinking = Thinking::kNone;
};

class OpenAiService {
 public:
  OpenAiService(const ServingDeps& deps, ServiceOptions options);
  ~OpenAiService();

  // The work on text, for the front pool. Any thread.
  std::optional<ApiError> Prepare(const ApiEndpoint& endpoint, std::string_view body,
                                  PreparedRequest* prepared);

  // Queues the sequences; on success fills `answer`, whose inbox calls `wake` (any thread) for
  // news. Any thread.
  std::optional<ApiError> Admit(PreparedRequest prepared, std::function<void()> wake,
                                std::unique_ptr<Answer>* answer);

  // No inbox hears anything from then on.
  void Stop();

  std::string Models() const;
  std::string Model(std::string_view name) const;  // one that CheckModel accepts
  // Whether it is one of this server's names.
  std::optional<ApiError> CheckModel(std::string_view name) const;
  std::string Version() const;
  std::string MetricsText(const ServingMetrics::Server& server);
  // What anyone may read of it; the failure behind it goes to the log, once.
  EngineHealth Health();
  ServingMetrics& metrics() { return metrics_; }
  EngineClient& engine() { return *deps_.engine; }

 private:
  std::optional<ApiError> Constrain(PreparedRequest* prepared);
  std::optional<ApiError> FillSampling(PreparedRequest* prepared);
  int OpenMaxTokens(const ApiRequest& request, size_t prompt_tokens) const;
  std::optional<ApiError> FillStops(ApiRequest* request) const;
  void AddSequences(PreparedRequest* prepared);
  void Identify(PreparedRequest* prepared);
  EventHub::Route MakeRoute(const PreparedRequest& prepared, size_t choice, const Answer& answer);

  const ServingDeps deps_;
  const ServiceOptions options_;
  const int64_t started_;
  const std::string id_prefix_;
  const ToolFormat* const tool_format_;  // null: none
  const bool reasoning_;
  std::atomic<uint64_t> next_sequence_{1};
  std::atomic<uint64_t> next_answer_{0};
  std::atomic<uint64_t> next_seed_;
  UnknownFields unknown_fields_;
  std::mutex failure_mutex_;
  std::string failure_logged_;
  ServingMetrics metrics_;
  const PromptReader prompts_;
  TextConstraints constraints_;
  std::shared_ptr<EventHub> hub_;
};

}  // namespace cadre
