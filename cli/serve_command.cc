#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "cli/as_data.h"
#include "cli/commands.h"
#include "cli/model_folder.h"
#include "cli/serve_options.h"
#include "cli/signals.h"
#include "core/trace.h"
#include "model/chat_template.h"
#include "model/model.h"
#include "model/tokenizer.h"
#include "serving/engine.h"
#include "serving/http/http_server.h"

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

// A file that cannot be taken leaves what was there before.
void Reload(const config::ServeConfig& config, HttpServer& server, spdlog::logger& log) {
  absl::StatusOr<ServeKeys> keys = ReadKeys(config);
  absl::Status status = keys.status();
  if (status.ok()) status = server.ReplaceKeys(keys->clients, keys->administrators);
  if (status.ok()) log.info("SIGHUP: {} keys", keys->clients.size() + keys->administrators.size());
  if (!status.ok()) log.error("SIGHUP: {}; the keys are as before", Message(status));
}

absl::Status RunServe(const ServeFlags& flags) {
  CADRE_ASSIGN_OR_RETURN(config::ServeConfig config, ResolveConfig(flags));
  CADRE_ASSIGN_OR_RETURN(Compute compute, ResolveCompute(ToComputeFlags(flags, config), "serve"));
  CADRE_ASSIGN_OR_RETURN(HttpServerOptions http, ToHttpOptions(config));
  http.service.version = flags.version;
  CatchStopSignals();
  CatchReloadSignal();
  std::unique_ptr<Trace> trace;
  if (!flags.trace.empty()) {
    CADRE_ASSIGN_OR_RETURN(trace, Trace::Create(flags.trace));
  }
  CADRE_ASSIGN_OR_RETURN(const EngineOptions options,
                         ToEngineOptions(config, compute, trace.get()));
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<Tokenizer> tokenizer,
      AsData(Tokenizer::Load(config.has_tokenizer() ? config.tokenizer() : config.model())));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<ChatTemplate> chat,
                         OptionalTemplate(config.model(), config.chat_template(), *compute.log));
  const auto load = [&](Allocator& allocator) {
    Context ctx{.allocator = &allocator, .threads = compute.threads};
    return LoadModel(ctx, config.model(), {.dtype = compute.dtype});
  };
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<ModelHome> model, AsData(ModelHome::Open(load)));
  CADRE_ASSIGN_OR_RETURN(std::unique_ptr<Engine> engine, Engine::Create(std::move(model), options));
  CADRE_ASSIGN_OR_RETURN(
      std::unique_ptr<HttpServer> server,
      HttpServer::Start(std::move(http), {tokenizer.get(), chat.get(), engine.get()}));
  compute.log->info("serving {} at http://{}:{}, context {}, {} KV blocks of {} tokens",
                    config.model(), config.host(), server->port(), engine->Info().max_context,
                    engine->kv_blocks(), config.block_size());
  LogAdmin(config, *server, *compute.log);
  while (WaitForSignal() == Signal::kReload) Reload(config, *server, *compute.log);
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
  flags->version = root.version().substr(root.version().rfind(' ') + 1);
  CLI::App* command = root.add_subcommand("serve", "Serve a model over the OpenAI HTTP surface");
  command->add_option("--model", flags->model, kModelHelp);
  command->add_option("--host", flags->host, "Address to bind [127.0.0.1]");
  command->add_option("--port", flags->port, "Port to bind, 0: a free one [8000]");
  command->add_option("--served-model-name", flags->served_model_name,
                      "Name that requests give (may be repeated)");
  command->add_option("--api-key", flags->api_key,
                      "Bearer token that is accepted (may be repeated)");
  command->add_option("--api-key-file", flags->api_key_file,
                      "File of more keys, one a line, read again on SIGHUP");
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
