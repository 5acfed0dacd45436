#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>

#include <spdlog/spdlog.h>
#include <CLI/CLI.hpp>

#include "cli/as_data.h"
#include "cli/commands.h"
#include "cli/compute_flags.h"
#include "cli/model_folder.h"
#include "cli/signals.h"
#include "core/config.h"
#include "core/host_allocator.h"
#include "core/trace.h"
#include "model/chat_template.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "proto/serve_config.pb.h"
#include "serving/engine.h"
#include "serving/http/http_server.h"

namespace cadre::cli {
namespace {

struct ServeFlags {
  std::string config;
  std::vector<std::string> overrides;
  std::string model, host, trace;
  int port = -1;
  std::vector<std::string> served_model_name, api_key;
  ComputeFlags compute;
  bool has_device = false, has_dtype = false, has_threads = false;
};

absl::StatusOr<config::ServeConfig> ResolveConfig(const ServeFlags& flags) {
  config::ServeConfig config;
  if (flags.config.empty())
    CADRE_RETURN_IF_ERROR(ApplyOverrides(flags.overrides, &config));
  else
    CADRE_RETURN_IF_ERROR(LoadYaml(flags.config, flags.overrides, &config));
  if (!flags.model.empty()) config.set_model(flags.model);
  if (!flags.host.empty()) config.set_host(flags.host);
  if (flags.port > 65535) return InvalidArgument("--port {}: allowed are 0 to 65535", flags.port);
  if (flags.port >= 0) config.set_port(flags.port);
  for (const std::string& name : flags.served_model_name) config.add_served_model_name(name);
  for (const std::string& key : flags.api_key) config.add_api_key(key);
  if (config.model().empty()) return InvalidArgument("--model: a Hugging Face folder is needed");
  config.set_model(ModelFolder(config.model()));
  return config;
}

// The flags, and the configuration where there is none.
ComputeFlags ToComputeFlags(const ServeFlags& flags, const config::ServeConfig& config) {
  ComputeFlags compute = flags.compute;
  if (!flags.has_device) compute.device = config.device() == config::DEVICE_CUDA ? "cuda" : "cpu";
  if (!flags.has_threads) compute.threads = config.threads();
  if (flags.has_dtype) return compute;
  switch (config.dtype()) {
    case config::COMPUTE_DTYPE_BF16:
      compute.dtype = "bf16";
      break;
    case config::COMPUTE_DTYPE_F32:
      compute.dtype = "f32";
      break;
    case config::COMPUTE_DTYPE_F64:
      compute.dtype = "f64";
      break;
  }
  return compute;
}

EngineOptions ToEngineOptions(const config::ServeConfig& config, const Compute& compute,
                              Trace* trace) {
  return {.threads = compute.threads,
          .max_num_seqs = config.max_num_seqs(),
          .max_num_batched_tokens = config.max_num_batched_tokens(),
          .max_model_len = config.max_model_len(),
          .block_size = config.block_size(),
          .kv_cache_memory_bytes = config.kv_cache_memory_bytes(),
          .max_queue_size = config.max_queue_size(),
          .trace = trace};
}

absl::StatusOr<HttpServerOptions> ToHttpOptions(const config::ServeConfig& config) {
  HttpServerOptions options{
      .host = config.host(),
      .port = static_cast<uint16_t>(config.port()),
      .api_keys = {config.api_key().begin(), config.api_key().end()},
      .cors_allowed_origins = {config.cors_allowed_origin().begin(),
                               config.cors_allowed_origin().end()},
      .max_connections = config.max_connections(),
      .max_request_bytes = static_cast<size_t>(config.max_request_bytes()),
      .max_total_request_bytes = static_cast<size_t>(config.max_total_request_bytes()),
      .read_timeout_s = config.read_timeout_s(),
      .keep_alive_timeout_s = config.keep_alive_timeout_s(),
      .request_timeout_s = config.request_timeout_s(),
      .front_threads = config.front_threads()};
  options.service.seed = config.seed();
  options.service.served_model_names = {config.served_model_name().begin(),
                                        config.served_model_name().end()};
  if (options.service.served_model_names.empty()) {
    // With a slash at its end, a path's last name is empty.
    const std::filesystem::path folder = std::filesystem::weakly_canonical(config.model()) / "";
    options.service.served_model_names = {folder.parent_path().filename().string()};
  }
  CADRE_ASSIGN_OR_RETURN(options.service.defaults, AsData(LoadSamplingDefaults(config.model())));
  return options;
}

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

absl::Status RunServe(const ServeFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(config::ServeConfig config, ResolveConfig(flags));
  CADRE_ASSIGN_OR_RETURN(Compute compute, ResolveCompute(ToComputeFlags(flags, config), "serve"));
  const std::atomic<bool>& stop = CatchStopSignals();
  std::unique_ptr<Trace> trace;
  if (!flags.trace.empty()) {
    CADRE_ASSIGN_OR_RETURN(trace, Trace::Create(flags.trace));
  }
  HostAllocator allocator;
  Context ctx{.allocator = &allocator, .threads = compute.threads};
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<Tokenizer> tokenizer,
      AsData(Tokenizer::Load(config.has_tokenizer() ? config.tokenizer() : config.model())));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<ChatTemplate> chat,
                         OptionalTemplate(config.model(), config.chat_template(), *compute.log));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
                         AsData(LoadModel(ctx, config.model(), {.dtype = compute.dtype})));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine,
                         Engine::Create(*model, ToEngineOptions(config, compute, trace.get())));
  CADRE_ASSIGN_OR_RETURN(HttpServerOptions http, ToHttpOptions(config));
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<HttpServer> server,
      HttpServer::Start(std::move(http), {tokenizer.get(), chat.get(), engine.get()}));
  compute.log->info("serving {} at http://{}:{}, context {}, {} KV blocks of {} tokens",
                    config.model(), config.host(), server->port(), engine->Info().max_context,
                    engine->kv_blocks(), config.block_size());
  if (!stop) WaitForStopSignal();
  compute.log->info("draining for at most {} s", config.drain_timeout_s());
  if (!server->Drain(config.drain_timeout_s()))
    compute.log->warn("requests still ran when the time was up");
  server->Stop();
  engine->Stop();
  return trace == nullptr ? absl::OkStatus() : trace->Close();
}

}  // namespace

void AddServeCommand(CLI::App& root, absl::Status* status) {
  auto flags = std::make_shared<ServeFlags>();
  CLI::App* command = root.add_subcommand("serve", "Serve a model over the OpenAI HTTP surface");
  command->add_option("--model", flags->model, kModelHelp);
  command->add_option("--host", flags->host, "Address to bind [127.0.0.1]");
  command->add_option("--port", flags->port, "Port to bind, 0: a free one [8000]");
  command->add_option("--served-model-name", flags->served_model_name,
                      "Name that requests give (may be repeated)");
  command->add_option("--api-key", flags->api_key,
                      "Bearer token that is accepted (may be repeated)");
  command->add_option("-c,--config", flags->config,
                      "YAML file with these and more (proto/serve_config.proto)");
  command
      ->add_option("--set", flags->overrides,
                   "Override one field: max_num_seqs=8 (may be repeated)")
      ->expected(1)
      ->take_all();
  command->add_option("--trace", flags->trace, "Write a Chrome trace (opens in Perfetto)");
  AddComputeFlags(*command, &flags->compute);
  command->callback([flags, command, status] {
    flags->has_device = command->count("--device") > 0;
    flags->has_dtype = command->count("--dtype") > 0;
    flags->has_threads = command->count("--threads") > 0;
    *status = RunServe(*flags);
  });
}

}  // namespace cadre::cli
