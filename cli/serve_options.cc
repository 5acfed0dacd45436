#include "cli/serve_options.h"

#include <spdlog/spdlog.h>
#include <sys/resource.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <utility>

#include "cli/as_data.h"
#include "cli/kv_cache_dtype.h"
#include "cli/model_folder.h"
#include "core/config.h"
#include "memory/kv_eviction.h"
#include "serving/http/api_keys.h"
#include "serving/http/tool_format.h"

namespace cadre::cli {
namespace {

std::string WeightsName(config::WeightFormat weights) {
  switch (weights) {
    case config::WEIGHT_FORMAT_STORED:
      return "stored";
    case config::WEIGHT_FORMAT_INT8:
      return "int8";
    case config::WEIGHT_FORMAT_INT4:
      return "int4";
  }
  return "stored";
}

absl::Status CheckParsers(const ServiceOptions& service) {
  const std::string& tools = service.tool_call_parser;
  if (tools != "auto" && tools != "none" && FindToolFormat(tools) == nullptr) {
    return InvalidArgument("tool_call_parser: '{}', allowed are auto, none, {}", tools,
                           ToolFormatNames());
  }
  const std::string& reasoning = service.reasoning_parser;
  if (reasoning != "auto" && reasoning != "none" && reasoning != "think") {
    return InvalidArgument("reasoning_parser: '{}', allowed are auto, none, think", reasoning);
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<ModelHome>> OpenDraft(const std::string& path,
                                                     const Compute& compute) {
  const ModelOptions options{.dtype = compute.dtype,
                             .weights = ForProductsAlone(WeightFormat::kStored, compute.dtype),
                             .pack = true};
  return ModelHome::Open([path, options, threads = compute.threads](Allocator& allocator) {
    return LoadModel({.allocator = &allocator, .threads = threads}, ModelFolder(path), options);
  });
}

}  // namespace

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
  if (!flags.api_key_file.empty()) config.set_api_key_file(flags.api_key_file);
  if (flags.allow_unauthenticated) config.set_allow_unauthenticated(true);
  if (flags.public_models) config.set_public_models(true);
  if (!flags.admin_host.empty()) config.set_admin_host(flags.admin_host);
  if (flags.admin_port > 65535) {
    return InvalidArgument("--admin-port {}: allowed are 0 to 65535", flags.admin_port);
  }
  if (flags.admin_port >= 0) config.set_admin_port(flags.admin_port);
  if (config.model().empty()) return InvalidArgument("--model: a Hugging Face folder is needed");
  config.set_model(ModelFolder(config.model()));
  if (const std::string& policy = config.kv_eviction().policy(); !policy.empty()) {
    CADRE_RETURN_IF_ERROR(MakeEvictionPolicy(policy, {}, "kv_eviction.policy").status());
  }
  return config;
}

ComputeFlags ToComputeFlags(const ServeFlags& flags, const config::ServeConfig& config) {
  ComputeFlags compute = flags.compute;
  if (!flags.has_device) compute.device = config.device() == config::DEVICE_CUDA ? "cuda" : "cpu";
  if (!flags.has_threads) compute.threads = config.threads();
  if (!flags.has_weights) compute.weights = WeightsName(config.weights());
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

static QueueOptions ToQueueOptions(const config::ServeConfig& config) {
  QueueOptions queue{.prompt_weight = config.fair_prompt_weight(),
                     .generated_weight = config.fair_generated_weight()};
  switch (config.scheduling_policy()) {
    case config::SCHEDULING_POLICY_FCFS:
      queue.policy = SchedulingPolicy::kFcfs;
      break;
    case config::SCHEDULING_POLICY_PRIORITY:
      queue.policy = SchedulingPolicy::kPriority;
      break;
    case config::SCHEDULING_POLICY_FAIR:
      queue.policy = SchedulingPolicy::kFair;
      break;
  }
  return queue;
}

absl::StatusOr<SpeculationOptions> ToSpeculation(const config::SpeculativeConfig& config,
                                                 const Compute& compute,
                                                 std::unique_ptr<ModelHome>* draft) {
  SpeculationOptions options{
      .num_speculative_tokens = config.num_speculative_tokens(),
      .max_num_seqs = config.max_num_seqs(),
      .ngram = {.longest = config.prompt_lookup_max(), .shortest = config.prompt_lookup_min()}};
  if (config.has_model() != (config.method() == config::SPECULATION_METHOD_DRAFT_MODEL)) {
    return InvalidArgument("speculative.model: goes with method: draft_model, which needs it");
  }
  if (config.has_num_layers() != (config.method() == config::SPECULATION_METHOD_SELF)) {
    return InvalidArgument("speculative.num_layers: goes with method: self, which needs it");
  }
  switch (config.method()) {
    case config::SPECULATION_METHOD_NONE:
      break;
    case config::SPECULATION_METHOD_NGRAM:
      options.method = SpeculationMethod::kNgram;
      break;
    case config::SPECULATION_METHOD_SELF:
      options.method = SpeculationMethod::kSelf;
      options.layers = config.num_layers();
      break;
    case config::SPECULATION_METHOD_DRAFT_MODEL:
      options.method = SpeculationMethod::kDraftModel;
      CADRE_ASSIGN_OR_RETURN(*draft, AsData(OpenDraft(config.model(), compute)));
      options.draft = draft->get();
      break;
  }
  return options;
}

absl::StatusOr<ops::KvQuantization> ToKvQuantization(const config::ServeConfig& config,
                                                     DType compute) {
  const auto parse = [&](std::string_view name) {
    return ParseKvCacheDType("kv_cache_dtype", name, compute);
  };
  switch (config.kv_cache_dtype()) {
    case config::KV_CACHE_DTYPE_AUTO:
      return parse("auto");
    case config::KV_CACHE_DTYPE_BF16:
      return parse("bf16");
    case config::KV_CACHE_DTYPE_INT8:
      return parse("int8");
    case config::KV_CACHE_DTYPE_INT4:
      return parse("int4");
  }
  return parse("");
}

static EvictionOptions ToEviction(const config::KvEvictionConfig& config) {
  return {
      .policy = config.policy(),
      .budget = config.budget(),
      .least_budget = config.min_budget(),
      .most_budget = config.max_budget(),
      .cake = {
          .tau1 = config.cake_tau1(), .tau2 = config.cake_tau2(), .gamma = config.cake_gamma()}};
}

absl::StatusOr<EngineOptions> ToEngineOptions(const config::ServeConfig& config,
                                              const Compute& compute, Trace* trace) {
  CADRE_ASSIGN_OR_RETURN(const ops::KvQuantization quantization,
                         ToKvQuantization(config, compute.dtype));
  return EngineOptions{
      .threads = compute.threads,
      .max_num_seqs = config.max_num_seqs(),
      .max_num_batched_tokens = config.max_num_batched_tokens(),
      .max_num_mixed_tokens = config.max_num_mixed_tokens(),
      .enable_chunked_prefill = config.enable_chunked_prefill(),
      .growth_reserve_tokens = config.growth_reserve_tokens(),
      .queue = ToQueueOptions(config),
      .max_model_len = config.max_model_len(),
      .block_size = config.block_size(),
      .kv_quantization = quantization,
      .kv_cache_memory_bytes = config.kv_cache_memory_bytes(),
      .enable_prefix_caching = config.enable_prefix_caching(),
      .prefix_cache_by_key = config.prefix_cache_by_key(),
      .eviction = ToEviction(config.kv_eviction()),
      .kv_tiers = {.host_bytes = config.kv_host_cache_bytes(),
                   .disk_bytes = config.kv_disk_cache_bytes(),
                   .disk_path = config.kv_disk_cache_path(),
                   .warn = [log = compute.log](const std::string& line) { log->warn("{}", line); }},
      .max_queue_size = config.max_queue_size(),
      .max_requests_per_key = config.max_requests_per_key(),
      .trace = trace};
}

absl::StatusOr<ServeKeys> ReadKeys(const config::ServeConfig& config) {
  ServeKeys keys{.clients = {config.api_key().begin(), config.api_key().end()}};
  if (config.has_api_key_file()) {
    CADRE_ASSIGN_OR_RETURN(std::vector<std::string> more, ReadKeyFile(config.api_key_file()));
    keys.clients.insert(keys.clients.end(), more.begin(), more.end());
  }
  if (config.has_admin_api_key_file()) {
    CADRE_ASSIGN_OR_RETURN(keys.administrators, ReadKeyFile(config.admin_api_key_file()));
  }
  return keys;
}

namespace {

// Raises the limit of open files as far as it may be, for as many connections.
absl::StatusOr<int> MaxConnections(const config::ServeConfig& config) {
  constexpr int64_t kOthers = 128;  // weights, logs, listeners, libraries
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return Internal("getrlimit: errno {}", errno);
  const int64_t wanted = config.max_connections();
  const int64_t most = limit.rlim_max == RLIM_INFINITY
                           ? wanted
                           : std::max<int64_t>(static_cast<int64_t>(limit.rlim_max) - kOthers, 1);
  if (config.has_max_connections() && wanted > most) {
    return InvalidArgument(
        "max_connections: {}, but the limit of open files is {} (ulimit -Hn); at "
        "most {} connections fit",
        wanted, limit.rlim_max, most);
  }
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  return static_cast<int>(std::min(wanted, most));
}

// Settings that would do nothing without another one.
absl::Status CheckHalves(const config::ServeConfig& config) {
  if (config.has_admin_api_key_file() && !config.has_admin_port()) {
    return InvalidArgument("admin_api_key_file: nothing needs it without admin_port");
  }
  if (config.has_kv_disk_cache_path() && config.kv_disk_cache_bytes() == 0) {
    return InvalidArgument("kv_disk_cache_path: nothing goes there without kv_disk_cache_bytes");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<HttpServerOptions> ToHttpOptions(const config::ServeConfig& config) {
  CADRE_ASSIGN_OR_RETURN(ServeKeys keys, ReadKeys(config));
  CADRE_ASSIGN_OR_RETURN(const int max_connections, MaxConnections(config));
  CADRE_RETURN_IF_ERROR(CheckHalves(config));
  HttpServerOptions options{
      .host = config.host(),
      .port = static_cast<uint16_t>(config.port()),
      .api_keys = std::move(keys.clients),
      .admin_port = config.has_admin_port() ? config.admin_port() : -1,
      .admin_host = config.admin_host(),
      .admin_api_keys = std::move(keys.administrators),
      .tls_certificate_file = config.tls_certificate_file(),
      .tls_key_file = config.tls_key_file(),
      .access_log_file = config.access_log(),
      .allow_unauthenticated = config.allow_unauthenticated(),
      .public_models = config.public_models(),
      .chat_page = config.chat_page(),
      .cors_allowed_origins = {config.cors_allowed_origin().begin(),
                               config.cors_allowed_origin().end()},
      .max_connections = max_connections,
      .max_request_bytes = static_cast<size_t>(config.max_request_bytes()),
      .max_total_request_bytes = static_cast<size_t>(config.max_total_request_bytes()),
      .read_timeout_s = config.read_timeout_s(),
      .keep_alive_timeout_s = config.keep_alive_timeout_s(),
      .request_timeout_s = config.request_timeout_s(),
      .front_threads = config.front_threads()};
  options.service.seed = config.seed();
  options.service.pooling = config.embedding_pooling() == config::EMBEDDING_POOLING_MEAN
                                ? Pooling::kMean
                                : Pooling::kLast;
  options.service.served_model_names = {config.served_model_name().begin(),
                                        config.served_model_name().end()};
  if (options.service.served_model_names.empty()) {
    // With a slash at its end, a path's last name is empty.
    const std::filesystem::path folder = std::filesystem::weakly_canonical(config.model()) / "";
    options.service.served_model_names = {folder.parent_path().filename().string()};
  }
  options.service.tool_call_parser = config.tool_call_parser();
  options.service.reasoning_parser = config.reasoning_parser();
  CADRE_RETURN_IF_ERROR(CheckParsers(options.service));
  CADRE_ASSIGN_OR_RETURN(options.service.defaults, AsData(LoadSamplingDefaults(config.model())));
  CADRE_RETURN_IF_ERROR(CheckHttpOptions(options));
  return options;
}

}  // namespace cadre::cli
