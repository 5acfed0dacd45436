#include "cli/serve_command.h"

#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#include "cli/arguments.h"
#include "cli/as_data.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "cli/ranks.h"
#include "cli/run_trace.h"
#include "cli/serve_options.h"
#include "cli/signals.h"
#include "core/config.h"
#include "core/log.h"
#include "core/trace.h"
#include "model/chat_template.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "serving/engine.h"
#include "serving/follower.h"
#include "serving/http/http_server.h"
#include "serving/serving_layout.h"
#include "serving/serving_ranks.h"

namespace cadre::cli {
namespace {

// Null where the model has none: chat requests are refused then. A `file` must be there.
absl::StatusOr<std::unique_ptr<ChatTemplate>> OptionalTemplate(const std::string& folder,
                                                               const std::string& file,
                                                               spdlog::logger& log) {
  auto chat = ChatTemplate::Load(folder, file);
  const bool none = chat.status().code() == absl::StatusCode::kNotFound && file.empty();
  if (!none) return AsData(std::move(chat));
  log.info("{}: no chat template, /v1/chat/completions is off", folder);
  return std::unique_ptr<ChatTemplate>();
}

void LogAdmin(const config::ServeConfig& config, const HttpServer& server, spdlog::logger& log) {
  if (server.admin_port() == 0) return;
  log.info("metrics and administration at http://{}:{}", config.admin_host(), server.admin_port());
}

void LogTokenBudget(const TokenBudget& budget, spdlog::logger& log) {
  log.info("at most {} tokens a step, {} where sequences decode ({})", budget.step, budget.mixed,
           budget.ridge == 0 ? "as configured"
                             : fmt::format("measured: the ridge is at {} tokens", budget.ridge));
}

// A file that cannot be taken leaves what was there before.
void Reload(const config::ServeConfig& config, HttpServer& server, spdlog::logger& log) {
  absl::StatusOr<ServeKeys> keys = ReadKeys(config);
  absl::Status status = keys.status();
  if (status.ok()) status = server.ReplaceKeys(keys->clients, keys->administrators);
  if (status.ok()) {
    log.info("SIGHUP: {} client keys, {} administrators' keys", keys->clients.size(),
             keys->administrators.size());
  }
  if (!status.ok()) log.error("SIGHUP: {}; the keys are as before", Message(status));
  status = server.ReloadFiles();
  if (!status.ok()) log.error("SIGHUP: {}; what was there stays", Message(status));
}

// The ranks of a server, or its only process.
struct Place {
  std::unique_ptr<Ranks> ranks;  // null: one process
  std::unique_ptr<RunTrace> trace;
  std::unique_ptr<ServingRanks> serving;  // null: one process
};

absl::StatusOr<Place> FindPlace(const ServeFlags& flags, const config::ServeConfig& config,
                                Compute* compute) {
  // A key is nobody's concern but rank 0's, and what ranks differ in is shown.
  config::ServeConfig shown = config;
  shown.clear_api_key();
  Place place;
  CADRE_ASSIGN_OR_RETURN(
      place.ranks,
      JoinRanks(config.comm(), {.configuration = DumpYaml(shown), .trace = !flags.trace.empty()},
                *compute->log));
  World* world = place.ranks == nullptr ? nullptr : place.ranks->world.get();
  CADRE_ASSIGN_OR_RETURN(const Layout layout,
                         LayoutOfServer(config, world == nullptr ? 1 : world->size()));
  if (world != nullptr && world->rank() > 0) {
    CADRE_ASSIGN_OR_RETURN(compute->log, MakeLogger(fmt::format("serve rank {}", world->rank()),
                                                    flags.compute.log_level));
  }
  if (!flags.trace.empty()) {
    CADRE_ASSIGN_OR_RETURN(place.trace, RunTrace::Create(flags.trace, world, layout));
  }
  if (world == nullptr) return place;
  place.serving =
      std::make_unique<ServingRanks>(*world, layout, place.ranks->membership.recorder.get());
  return place;
}

// The configuration outlives it: a model that was given up is loaded again.
absl::StatusOr<std::unique_ptr<ModelHome>> OpenOwnPart(const config::ServeConfig& config,
                                                       const Compute& compute,
                                                       ServingRanks* ranks) {
  ModelOptions options{.dtype = compute.dtype,
                       .weights = ForProductsAlone(compute.weights, compute.dtype),
                       .pack = true};
  if (ranks != nullptr) options.decoder.part = ranks->part();
  const auto load = [&config, options, threads = compute.threads](Allocator& allocator) {
    const Context ctx{.allocator = &allocator, .threads = threads};
    return LoadModel(ctx, config.model(), options);
  };
  absl::StatusOr<std::unique_ptr<ModelHome>> home = AsData(ModelHome::Open(load));
  if (ranks != nullptr) CADRE_RETURN_IF_ERROR(ranks->Agree(home.status(), {"model"}));
  return home;
}

// Loaded beside the weights, which take longer.
struct TextParts {
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<ChatTemplate> chat;  // null: none
};

absl::StatusOr<TextParts> LoadTextParts(const config::ServeConfig& config, spdlog::logger& log) {
  TextParts text;
  CADRE_ASSIGN_OR_RETURN(
      text.tokenizer,
      AsData(Tokenizer::Load(config.has_tokenizer() ? config.tokenizer() : config.model())));
  CADRE_ASSIGN_OR_RETURN(text.chat, OptionalTemplate(config.model(), config.chat_template(), log));
  return text;
}

// Finishes what runs, as far as there is time; the rest ends with an error that says so.
void End(const config::ServeConfig& config, bool failed, HttpServer& server, Engine& engine,
         spdlog::logger& log) {
  constexpr double kLastWordsSeconds = 1;
  server.Leave();
  // Requests of an engine that failed have only their errors left to be written.
  const double drain = failed ? kLastWordsSeconds : config.drain_timeout_s();
  const double delay = failed ? 0 : config.drain_delay_s();
  if (delay > 0) log.info("/ready says 503; draining begins in {} s", delay);
  std::this_thread::sleep_for(std::chrono::duration<double>(delay));
  log.info("draining for at most {} s", drain);
  if (!server.Drain(drain)) {
    log.warn("requests still ran when the time was up");
    engine.Stop();
    server.Drain(kLastWordsSeconds);
  }
  server.Stop();
  engine.Stop();
}

// A stop signal drains from here on.
void StartServing(const config::ServeConfig& config, const ServingDeps& deps, HttpServer& server,
                  spdlog::logger& log) {
  EndAtFirstStop(false);
  server.Serve(deps);
  const ModelInfo info = deps.engine->Info();
  if (deps.tokenizer->vocab_size() > info.vocab_size) {
    log.warn(
        "the tokenizer has {} tokens, the model {}: those beyond are never generated, prompts with "
        "them are refused",
        deps.tokenizer->vocab_size(), info.vocab_size);
  }
  if (info.max_sequence >= info.max_context) return;
  log.warn(
      "the KV cache has room for {} tokens, less than the context of {}: a prompt and its "
      "answer may have {} together; kv_cache_memory_bytes makes it larger{}",
      info.max_sequence, info.max_context, info.max_sequence,
      config.has_max_model_len() ? "" : ", max_model_len the context smaller");
}

absl::Status ServeHttp(const config::ServeConfig& config, const Compute& compute,
                       HttpServer& server, TextParts text, std::unique_ptr<ModelHome> home,
                       EngineOptions options) {
  absl::Status failure;  // written before the engine's thread ends
  options.on_failure = [&failure](const absl::Status& status) {
    failure = status;
    ReportFailure();
  };
  std::unique_ptr<ModelHome> draft;
  CADRE_ASSIGN_OR_RETURN(options.speculation, ToSpeculation(config.speculative(), compute, &draft));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(std::move(home), options));
  StartServing(config, {text.tokenizer.get(), text.chat.get(), engine.get(), options.trace}, server,
               *compute.log);
  compute.log->info("serving {} at {}://{}:{}, context {}, {} KV blocks of {} tokens",
                    config.model(), config.has_tls_key_file() ? "https" : "http", config.host(),
                    server.port(), engine->Info().max_context, engine->kv_blocks(),
                    config.block_size());
  LogTokenBudget(engine->token_budget(), *compute.log);
  LogAdmin(config, server, *compute.log);
  Signal signal = Signal::kReload;
  while ((signal = WaitForSignal()) == Signal::kReload) Reload(config, server, *compute.log);
  End(config, signal == Signal::kFailure, server, *engine, *compute.log);
  return failure;
}

absl::Status ServePlace(const ServeFlags& flags, const config::ServeConfig& config,
                        const Compute& compute, HttpServer* server, const Place& place) {
  Trace* trace = place.trace == nullptr ? nullptr : place.trace->trace();
  CADRE_ASSIGN_OR_RETURN(EngineOptions options, ToEngineOptions(config, compute, trace));
  options.ranks = place.serving.get();
  std::future<absl::StatusOr<TextParts>> text;
  if (options.ranks == nullptr || options.ranks->leader()) {
    text = std::async(std::launch::async, [&] { return LoadTextParts(config, *compute.log); });
  }
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<ModelHome> home,
                         OpenOwnPart(config, compute, options.ranks));
  if (options.ranks != nullptr && !options.ranks->leader()) {
    EndAtFirstStop(false);
    CADRE_RETURN_IF_ERROR(FollowSteps(*home, options, *options.ranks));
  } else {
    CADRE_ASSIGN_OR_RETURN(TextParts parts, text.get());
    CADRE_RETURN_IF_ERROR(
        ServeHttp(config, compute, *server, std::move(parts), std::move(home), options));
  }
  return place.trace == nullptr ? absl::OkStatus() : place.trace->Finish(*compute.log);
}

absl::Status RunServe(const ServeFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(config::ServeConfig config, ResolveConfig(flags));
  CADRE_ASSIGN_OR_RETURN(Compute compute, ResolveCompute(ToComputeFlags(flags, config), "serve"));
  CADRE_ASSIGN_OR_RETURN(const OwnStart start, FindOwnStart());
  EndAtFirstStop(true);
  const std::atomic<bool>& stopped = CatchStopSignals();
  CatchReloadSignal();
  // Before clients see a port.
  CADRE_RETURN_IF_ERROR(AsData(LoadHfConfig(config.model())).status());
  std::unique_ptr<HttpServer> server;  // null: another rank has it
  if (start.leader) {
    CADRE_ASSIGN_OR_RETURN(HttpServerOptions http, ToHttpOptions(config));
    http.service.version = flags.version;
    http.service.log = compute.log;
    CADRE_ASSIGN_OR_RETURN(server, HttpServer::Listen(std::move(http)));
    compute.log->info("listening on {}:{}, /ready says 503 while the model is loaded",
                      config.host(), server->port());
  }
  CADRE_ASSIGN_OR_RETURN(const Place place, FindPlace(flags, config, &compute));
  const absl::Status served = ServePlace(flags, config, compute, server.get(), place);
  // Rank 0 may have ended first where all are to stop.
  if (!start.leader && stopped && absl::IsUnavailable(served)) return absl::OkStatus();
  return WithPeerLoss(served, place.ranks.get());
}

void AddOptions(CLI::App* command, const std::shared_ptr<ServeFlags>& flags) {
  command->add_option("--model", flags->model, kModelHelp);
  command->add_option("--host", flags->host, "Address to bind [127.0.0.1]");
  command->add_option("--port", flags->port, "Port to bind, 0: a free one [8000]");
  command->add_option("--served-model-name", flags->served_model_name,
                      "Name that requests give (may be repeated)");
  command->add_option("--api-key", flags->api_key,
                      "Bearer token that is accepted (may be repeated)");
  command->add_option("--api-key-file", flags->api_key_file,
                      "File of more keys, one a line, read again on SIGHUP");
  command->add_flag("--public-models", flags->public_models, "/v1/models needs no key");
  command->add_flag("--allow-unauthenticated", flags->allow_unauthenticated,
                    "Start without keys even where other machines reach the address");
  command->add_option("--admin-host", flags->admin_host, "Address of --admin-port [127.0.0.1]");
  command->add_option("--admin-port", flags->admin_port,
                      "Port for /metrics and administration, 0: a free one [none]");
  command->add_option("-c,--config", flags->config,
                      "YAML file with these and more (proto/serve_config.proto)");
  command
      ->add_option("--set", flags->overrides,
                   "Override one field: max_num_seqs=8 (may be repeated)")
      ->expected(1)
      ->take_all();
  command->add_option("--trace", flags->trace,
                      "Write a Chrome trace (opens in Perfetto), of all ranks on one timeline");
  AddComputeFlags(*command, &flags->compute);
}

}  // namespace

void AddServeCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<ServeFlags>();
  flags->version = root.version().substr(root.version().rfind(' ') + 1);
  CLI::App* command = root.add_subcommand("serve", "Serve a model over the OpenAI HTTP surface");
  AddOptions(command, flags);
  command->callback([flags, command, status] {
    flags->has_device = command->count("--device") > 0;
    flags->has_dtype = command->count("--dtype") > 0;
    flags->has_weights = command->count("--weights") > 0;
    flags->has_threads = command->count("--threads") > 0;
    *status = RunServe(*flags);
  });
}

absl::StatusOr<config::ServeConfig> ServeConfigOf(std::vector<std::string> arguments) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App app("", "serve");
  AddOptions(&app, flags);
  std::reverse(arguments.begin(), arguments.end());  // as parse takes them
  try {
    app.parse(std::move(arguments));
  } catch (const CLI::ParseError& error) {
    return InvalidArgument("{}", ParseFailure(app, error));
  }
  return ResolveConfig(*flags);
}

absl::StatusOr<Layout> LayoutOfServer(const config::ServeConfig& config, int world) {
  CADRE_ASSIGN_OR_RETURN(const HfConfig hf, AsData(LoadHfConfig(config.model())));
  CADRE_ASSIGN_OR_RETURN(const DecoderSpec spec, AsData(ResolveModelConfig(hf.model)));
  return LayoutOfServing(spec, config.parallel(), world);
}

}  // namespace cadre::cli
