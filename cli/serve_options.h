// `cadre serve`'s flags and configuration, as what the engine and the HTTP server take.
#pragma once

#include <string>
#include <vector>

#include "cli/compute_flags.h"
#include "core/status.h"
#include "proto/serve_config.pb.h"
#include "serving/engine.h"
#include "serving/http/http_server.h"

namespace cadre::cli {

struct ServeFlags {
  std::string config;
  std::vector<std::string> overrides;
  std::string version;  // the program's
  std::string model, host, trace, api_key_file, admin_host;
  int port = -1, admin_port = -1;
  std::vector<std::string> served_model_name, api_key;
  ComputeFlags compute;
  bool allow_unauthenticated = false, public_models = false;
  bool has_device = false, has_dtype = false, has_weights = false, has_threads = false;
};

// The file, the overrides and the flags; kInvalidArgument where they are no configuration.
absl::StatusOr<config::ServeConfig> ResolveConfig(const ServeFlags& flags);

// The flags, and the configuration where there is none.
ComputeFlags ToComputeFlags(const ServeFlags& flags, const config::ServeConfig& config);

// `draft` becomes the home of the model that drafts, where the configuration names one.
absl::StatusOr<SpeculationOptions> ToSpeculation(const config::SpeculativeConfig& config,
                                                 const Compute& compute,
                                                 std::unique_ptr<ModelHome>* draft);
absl::StatusOr<EngineOptions> ToEngineOptions(const config::ServeConfig& config,
                                              const Compute& compute, Trace* trace);

// Reads the files that the configuration names: keys and the model's sampling defaults. What the
// server would refuse is refused here, before the weights are loaded.
absl::StatusOr<HttpServerOptions> ToHttpOptions(const config::ServeConfig& config);

// The keys as they are now: those of the configuration and of its files.
struct ServeKeys {
  std::vector<std::string> clients, administrators;
};
absl::StatusOr<ServeKeys> ReadKeys(const config::ServeConfig& config);

}  // namespace cadre::cli
