#include "cluster/rank_environment.h"

#include <charconv>
#include <utility>
#include <vector>

#include "cluster/gathering.h"
#include "cluster/host_list.h"

namespace cadre {
namespace {

constexpr char kLoopback[] = "127.0.0.1";

// Reads numbers; the first that is none is kept as the error of all.
class Variables {
 public:
  explicit Variables(const VariableLookup& lookup) : lookup_(lookup) {}

  // Empty counts as not set, as shells and Kubernetes leave it.
  std::optional<std::string> Text(const std::string& name) const {
    std::optional<std::string> value = lookup_(name);
    return value && !value->empty() ? value : std::nullopt;
  }
  bool Has(const std::string& name) const { return Text(name).has_value(); }
  std::string TextOr(const std::string& name, std::string fallback) const {
    return Text(name).value_or(std::move(fallback));
  }
  std::optional<int> Number(const std::string& name, int lowest, int highest) {
    const std::optional<std::string> text = Text(name);
    if (!text) return std::nullopt;
    int value = 0;
    const char* end = text->data() + text->size();
    const auto parsed = std::from_chars(text->data(), end, value);
    if (parsed.ec != std::errc() || parsed.ptr != end || value < lowest || value > highest) {
      Wrong(InvalidArgument("{}={}: {} to {} are allowed", name, *text, lowest, highest));
      return std::nullopt;
    }
    return value;
  }
  int Needed(const std::string& name, int lowest, int highest, const std::string& because) {
    if (!Has(name)) Wrong(InvalidArgument("{} is not set, but {} is", name, because));
    return Number(name, lowest, highest).value_or(lowest);
  }
  int NumberOr(const std::string& name, int lowest, int highest, int fallback) {
    return Number(name, lowest, highest).value_or(fallback);
  }
  void Wrong(const absl::Status& status) {
    if (status_.ok()) status_ = status;
  }
  const absl::Status& status() const { return status_; }

 private:
  const VariableLookup& lookup_;
  absl::Status status_;
};

constexpr int kMaxRanks = Gathering::kMaxMembers;
constexpr int kMaxCount = 1 << 30;
constexpr int kMaxPort = 65535;

// What one convention calls them; an empty name is never set.
struct Names {
  std::string rank, world_size, local_rank, local_world_size;
};

void ReadNumbers(Variables& variables, const Names& names, RankEnvironment* environment) {
  environment->rank = variables.Needed(names.rank, 0, kMaxRanks - 1, names.world_size);
  environment->world_size = variables.Needed(names.world_size, 1, kMaxRanks, names.rank);
  environment->local_rank = variables.NumberOr(names.local_rank, 0, kMaxRanks - 1, 0);
  environment->local_world_size =
      variables.NumberOr(names.local_world_size, 1, kMaxRanks,
                         variables.Has(names.local_rank) ? environment->local_rank + 1 : 1);
  const auto below = [&](const std::string& low, int value, const std::string& high, int bound) {
    if (value >= bound) {
      variables.Wrong(
          InvalidArgument("{}={} and {}={} contradict one another", low, value, high, bound));
    }
  };
  below(names.rank, environment->rank, names.world_size, environment->world_size);
  below(names.local_rank, environment->local_rank, names.local_world_size,
        environment->local_world_size);
  if (environment->local_world_size > environment->world_size) {
    variables.Wrong(InvalidArgument("{}={} and {}={} contradict one another",
                                    names.local_world_size, environment->local_world_size,
                                    names.world_size, environment->world_size));
  }
}

// MASTER_ADDR and MASTER_PORT, which every convention may set; `derived` is what this one knows.
void ReadMaster(Variables& variables, const std::string& derived, RankEnvironment* environment) {
  environment->master_port = variables.NumberOr("MASTER_PORT", 1, kMaxPort, kDefaultRendezvousPort);
  const bool one_node = environment->local_world_size == environment->world_size;
  environment->master_address = variables.TextOr("MASTER_ADDR", !derived.empty() ? derived
                                                                : one_node       ? kLoopback
                                                                                 : "");
  if (environment->master_address.empty()) {
    variables.Wrong(InvalidArgument(
        "MASTER_ADDR is not set: {} does not say on which host rank 0 is", environment->source));
  }
}

void Torchrun(Variables& variables, RankEnvironment* environment) {
  environment->source = "torchrun";
  ReadNumbers(variables, {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}, environment);
  environment->node_rank = variables.NumberOr("GROUP_RANK", 0, kMaxRanks - 1, 0);
  environment->restart_count = variables.NumberOr("TORCHELASTIC_RESTART_COUNT", 0, kMaxCount, 0);
  const std::optional<std::string> hosted = variables.Text(kRendezvousVariable);
  if (!hosted) {
    ReadMaster(variables, "", environment);
    // torchrun's own store listens at MASTER_PORT then.
    if (variables.TextOr("TORCHELASTIC_USE_AGENT_STORE", "") == "True") {
      environment->master_port += environment->master_port < kMaxPort ? 1 : -1;
    }
    return;
  }
  const absl::StatusOr<HostPort> endpoint = ParseEndpoint(kRendezvousVariable, *hosted);
  if (!endpoint.ok()) return variables.Wrong(endpoint.status());
  environment->master_address = endpoint->host;
  environment->master_port = endpoint->port;
  environment->rendezvous_hosted = true;
  environment->generation = variables.NumberOr(kGenerationVariable, 0, kMaxCount, 0);
}

void OpenMpi(Variables& variables, RankEnvironment* environment) {
  environment->source = "Open MPI";
  const std::string prefix = "OMPI_COMM_WORLD_";
  ReadNumbers(variables,
              {prefix + "RANK", prefix + "SIZE", prefix + "LOCAL_RANK", prefix + "LOCAL_SIZE"},
              environment);
  environment->node_rank = variables.NumberOr(prefix + "NODE_RANK", 0, kMaxRanks - 1, 0);
  ReadMaster(variables, "", environment);
}

// Of the step, where srun says so, else of the whole job.
std::string SlurmName(const Variables& variables, const std::string& step, const std::string& job) {
  return variables.Has(step) ? step : job;
}

std::string SlurmMaster(Variables& variables) {
  const std::string name = SlurmName(variables, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST");
  const std::optional<std::string> list = variables.Text(name);
  if (!list) return "";
  const absl::StatusOr<std::vector<std::string>> hosts = ExpandHostList(*list);
  if (!hosts.ok()) {
    variables.Wrong(Annotate(hosts.status(), name));
    return "";
  }
  return hosts->front();
}

int SlurmLocalSize(Variables& variables, int node, int fallback) {
  const std::string name =
      SlurmName(variables, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE");
  const std::optional<std::string> list = variables.Text(name);
  if (!list) return variables.NumberOr("SLURM_NTASKS_PER_NODE", 1, kMaxRanks, fallback);
  const absl::StatusOr<std::vector<int>> counts = ExpandTaskCounts(*list);
  if (!counts.ok() || node >= static_cast<int>(counts->size())) {
    variables.Wrong(
        InvalidArgument("{}={}: it does not say how many tasks node {} has", name, *list, node));
    return fallback;
  }
  return (*counts)[static_cast<size_t>(node)];
}

void Slurm(Variables& variables, RankEnvironment* environment) {
  environment->source = "Slurm";
  const std::string size = SlurmName(variables, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS");
  ReadNumbers(variables, {"SLURM_PROCID", size, "SLURM_LOCALID", ""}, environment);
  // sbatch gives its script the job's number of tasks, and runs it once, as task 0 of no step.
  if (!variables.Has("SLURM_STEP_ID") && environment->rank == 0 && environment->world_size > 1) {
    variables.Wrong(InvalidArgument(
        "{}={}, but this process alone was started, by sbatch: start it with srun (with srun "
        "--ntasks 1 as one process)",
        size, environment->world_size));
  }
  environment->node_rank = variables.NumberOr("SLURM_NODEID", 0, kMaxRanks - 1, 0);
  const int nodes = variables.NumberOr(SlurmName(variables, "SLURM_STEP_NUM_NODES", "SLURM_NNODES"),
                                       1, kMaxRanks, 1);
  const int even = (environment->world_size + nodes - 1) / nodes;
  environment->local_world_size = SlurmLocalSize(variables, environment->node_rank, even);
  if (environment->local_rank >= environment->local_world_size) {
    variables.Wrong(InvalidArgument("SLURM_LOCALID={}: its node has {} tasks",
                                    environment->local_rank, environment->local_world_size));
  }
  environment->restart_count = variables.NumberOr("SLURM_RESTART_COUNT", 0, kMaxCount, 0);
  ReadMaster(variables, SlurmMaster(variables), environment);
}

// Pods of an indexed job are called JOB-INDEX.SERVICE: pod 0 is the one that the others find.
std::string FirstPod(const std::string& host_name, int index) {
  const size_t dot = host_name.find('.');
  const std::string label = host_name.substr(0, dot), own = fmt::format("-{}", index);
  if (!label.ends_with(own)) return "";
  const std::string domain = dot == std::string::npos ? "" : host_name.substr(dot);
  return label.substr(0, label.size() - own.size()) + "-0" + domain;
}

void Kubeflow(Variables& variables, RankEnvironment* environment) {
  environment->source = "Kubeflow";
  environment->rank = environment->node_rank =
      variables.Needed("PET_NODE_RANK", 0, kMaxRanks - 1, "PET_NNODES");
  environment->world_size = variables.Needed("PET_NNODES", 1, kMaxRanks, "PET_NODE_RANK");
  if (environment->rank >= environment->world_size) {
    variables.Wrong(InvalidArgument("PET_NODE_RANK={} and PET_NNODES={} contradict one another",
                                    environment->rank, environment->world_size));
  }
  ReadMaster(variables, variables.TextOr("PET_MASTER_ADDR", ""), environment);
  environment->master_port =
      variables.NumberOr("PET_MASTER_PORT", 1, kMaxPort, environment->master_port);
}

void IndexedJob(Variables& variables, const std::string& host_name, RankEnvironment* environment) {
  environment->source = "a Kubernetes indexed job";
  ReadNumbers(variables, {"JOB_COMPLETION_INDEX", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"},
              environment);
  environment->node_rank = environment->rank;
  ReadMaster(variables, FirstPod(host_name, environment->rank), environment);
}

// A launcher starts several ranks for one PET_ or pod; a bare program is one rank.
bool OneProcessAPod(const Variables& variables) {
  const std::string processes = variables.TextOr("PET_NPROC_PER_NODE", "1");
  return variables.Has("PET_NODE_RANK") && (processes == "1" || processes == "auto");
}

}  // namespace

absl::StatusOr<std::optional<RankEnvironment>> FindRankEnvironment(const VariableLookup& lookup,
                                                                   const std::string& host_name) {
  Variables variables(lookup);
  RankEnvironment environment;
  const bool indexed = variables.Has("JOB_COMPLETION_INDEX");
  if (variables.Has("RANK")) {
    Torchrun(variables, &environment);
  } else if (variables.Has("OMPI_COMM_WORLD_RANK") || variables.Has("OMPI_COMM_WORLD_SIZE")) {
    OpenMpi(variables, &environment);
  } else if (OneProcessAPod(variables)) {
    Kubeflow(variables, &environment);
  } else if (indexed && variables.Has("WORLD_SIZE")) {
    IndexedJob(variables, host_name, &environment);
  } else if (variables.Has("SLURM_PROCID")) {
    Slurm(variables, &environment);
  } else if (variables.Has("WORLD_SIZE") && !indexed) {
    Torchrun(variables, &environment);  // says what is missing
  } else {
    return std::nullopt;
  }
  CADRE_RETURN_IF_ERROR(variables.status());
  if (environment.world_size == 1 && !environment.rendezvous_hosted) return std::nullopt;
  if (!environment.rendezvous_hosted) environment.generation = environment.restart_count;
  environment.token = variables.TextOr(kTokenVariable, "");
  environment.flight_record = variables.TextOr(kFlightRecordVariable, "");
  return environment;
}

absl::StatusOr<NodeEnvironment> FindNodeEnvironment(const VariableLookup& lookup,
                                                    const std::string& host_name) {
  Variables variables(lookup);
  NodeEnvironment node;
  std::string address;
  std::string port = "MASTER_PORT";
  if (variables.Has("PET_NNODES") || variables.Has("PET_NODE_RANK")) {
    node.source = "Kubeflow";
    if (const auto nodes = variables.Text("PET_NNODES")) {
      CADRE_ASSIGN_OR_RETURN(node.nodes, ParseNodeRange("PET_NNODES", *nodes));
    }
    node.node_rank = variables.Number("PET_NODE_RANK", 0, kMaxRanks - 1);
    if (variables.TextOr("PET_NPROC_PER_NODE", "auto") != "auto") {
      node.processes = variables.Number("PET_NPROC_PER_NODE", 1, kMaxRanks);
    }
    address = variables.TextOr("PET_MASTER_ADDR", "");
    port = "PET_MASTER_PORT";
  } else if (variables.Has("JOB_COMPLETION_INDEX")) {
    node.source = "a Kubernetes indexed job";
    node.node_rank = variables.Number("JOB_COMPLETION_INDEX", 0, kMaxRanks - 1);
    address = variables.TextOr("MASTER_ADDR", FirstPod(host_name, node.node_rank.value_or(0)));
  } else if (variables.Has("SLURM_STEP_ID") && variables.Has("SLURM_PROCID")) {
    // One launcher a node: the step's tasks are nodes.
    node.source = "Slurm";
    const std::string name = SlurmName(variables, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS");
    if (const auto nodes = variables.Text(name)) {
      CADRE_ASSIGN_OR_RETURN(node.nodes, ParseNodeRange(name, *nodes));
    }
    node.node_rank = variables.Number("SLURM_PROCID", 0, kMaxRanks - 1);
    address = variables.TextOr("MASTER_ADDR", SlurmMaster(variables));
  }
  if (!address.empty()) {
    node.rendezvous =
        HostPort{address, variables.NumberOr(port, 1, kMaxPort, kDefaultRendezvousPort)};
  }
  CADRE_RETURN_IF_ERROR(variables.status());
  return node;
}

}  // namespace cadre
