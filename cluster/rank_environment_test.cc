#include "cluster/rank_environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "cluster/host_list.h"

namespace cadre {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using Variables = std::map<std::string, std::string>;

VariableLookup In(const Variables& variables) {
  return [variables](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  };
}

absl::StatusOr<std::optional<RankEnvironment>> Find(const Variables& variables,
                                                    const std::string& host = "here") {
  return FindRankEnvironment(In(variables), host);
}

// "source rank/world local_rank/local_world node restart address:port", or the error.
std::string Found(const Variables& variables, const std::string& host = "here") {
  const auto found = Find(variables, host);
  if (!found.ok()) {
    EXPECT_EQ(found.status().code(), absl::StatusCode::kInvalidArgument);
    return Message(found.status());
  }
  if (!*found) return "one process";
  const RankEnvironment& e = **found;
  return fmt::format("{} {}/{} {}/{} {} {} {}:{}", e.source, e.rank, e.world_size, e.local_rank,
                     e.local_world_size, e.node_rank, e.restart_count, e.master_address,
                     e.master_port);
}

TEST(RankEnvironment, NothingSetIsOneProcess) {
  EXPECT_EQ(Found({}), "one process");
  EXPECT_EQ(Found({{"RANK", ""}, {"WORLD_SIZE", ""}}), "one process");
  EXPECT_EQ(Found({{"RANK", "0"}, {"WORLD_SIZE", "1"}}), "one process");
}

TEST(RankEnvironment, Torchrun) {
  const Variables torchrun = {{"RANK", "5"},           {"WORLD_SIZE", "8"},
                              {"LOCAL_RANK", "1"},     {"LOCAL_WORLD_SIZE", "4"},
                              {"GROUP_RANK", "1"},     {"MASTER_ADDR", "host0"},
                              {"MASTER_PORT", "1234"}, {"TORCHELASTIC_RESTART_COUNT", "2"}};
  EXPECT_EQ(Found(torchrun), "torchrun 5/8 1/4 1 2 host0:1234");
  // The variables of what runs it do not count.
  Variables under_slurm = torchrun;
  under_slurm.insert({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "2"}, {"JOB_COMPLETION_INDEX", "1"}});
  EXPECT_EQ(Found(under_slurm), Found(torchrun));
  EXPECT_EQ(
      Found({{"RANK", "1"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "2"}}),
      "torchrun 1/2 1/2 0 0 127.0.0.1:29500");
}

TEST(RankEnvironment, ThePortOfTorchrunsOwnStoreIsLeftToIt) {
  Variables torchrun = {{"RANK", "0"},
                        {"WORLD_SIZE", "2"},
                        {"MASTER_ADDR", "host0"},
                        {"MASTER_PORT", "1234"},
                        {"TORCHELASTIC_USE_AGENT_STORE", "False"}};
  EXPECT_THAT(Found(torchrun), EndsWith(" host0:1234"));
  torchrun["TORCHELASTIC_USE_AGENT_STORE"] = "True";
  EXPECT_THAT(Found(torchrun), EndsWith(" host0:1235"));
  torchrun["MASTER_PORT"] = "65535";
  EXPECT_THAT(Found(torchrun), EndsWith(" host0:65534"));
}

TEST(RankEnvironment, OurLauncherHostsTheRendezvous) {
  const auto found = Find({{"RANK", "0"},
                           {"WORLD_SIZE", "1"},
                           {"LOCAL_RANK", "0"},
                           {"LOCAL_WORLD_SIZE", "1"},
                           {kRendezvousVariable, "127.0.0.1:4000"},
                           {kGenerationVariable, "7"},
                           {kTokenVariable, "t"},
                           {kFlightRecordVariable, "/dev/shm/x"}});
  ASSERT_TRUE(found.ok() && *found) << found.status();
  EXPECT_TRUE((*found)->rendezvous_hosted);
  EXPECT_EQ((*found)->master_port, 4000);
  EXPECT_EQ((*found)->generation, 7);
  EXPECT_EQ((*found)->token, "t");
  EXPECT_EQ((*found)->flight_record, "/dev/shm/x");
}

TEST(RankEnvironment, WhatIsWrongIsNamed) {
  EXPECT_EQ(Found({{"RANK", "1"}}), "WORLD_SIZE is not set, but RANK is");
  EXPECT_EQ(Found({{"WORLD_SIZE", "2"}}), "RANK is not set, but WORLD_SIZE is");
  EXPECT_EQ(Found({{"RANK", "x"}, {"WORLD_SIZE", "2"}}), "RANK=x: 0 to 65535 are allowed");
  EXPECT_EQ(Found({{"RANK", "-1"}, {"WORLD_SIZE", "2"}}), "RANK=-1: 0 to 65535 are allowed");
  EXPECT_EQ(Found({{"RANK", "1 "}, {"WORLD_SIZE", "2"}}), "RANK=1 : 0 to 65535 are allowed");
  EXPECT_EQ(Found({{"RANK", "0"}, {"WORLD_SIZE", "99999999999999"}}),
            "WORLD_SIZE=99999999999999: 1 to 65536 are allowed");
  EXPECT_EQ(Found({{"RANK", "2"}, {"WORLD_SIZE", "2"}}),
            "RANK=2 and WORLD_SIZE=2 contradict one another");
  EXPECT_EQ(
      Found({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "3"}, {"LOCAL_WORLD_SIZE", "2"}}),
      "LOCAL_RANK=3 and LOCAL_WORLD_SIZE=2 contradict one another");
  EXPECT_EQ(
      Found({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"LOCAL_RANK", "0"}, {"LOCAL_WORLD_SIZE", "4"}}),
      "LOCAL_WORLD_SIZE=4 and WORLD_SIZE=2 contradict one another");
  EXPECT_EQ(Found({{"RANK", "0"}, {"WORLD_SIZE", "2"}}),
            "MASTER_ADDR is not set: torchrun does not say on which host rank 0 is");
  EXPECT_EQ(Found({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_ADDR", "a"}, {"MASTER_PORT", "0"}}),
            "MASTER_PORT=0: 1 to 65535 are allowed");
}

TEST(RankEnvironment, Slurm) {
  const Variables slurm = {{"SLURM_STEP_ID", "0"},
                           {"SLURM_PROCID", "5"},
                           {"SLURM_LOCALID", "1"},
                           {"SLURM_NODEID", "1"},
                           {"SLURM_NTASKS", "7"},
                           {"SLURM_NNODES", "2"},
                           {"SLURM_JOB_NODELIST", "node[08-09]"},
                           {"SLURM_RESTART_COUNT", "3"}};
  EXPECT_EQ(Found(slurm), "Slurm 5/7 1/4 1 3 node08:29500");
  Variables first = slurm;
  first["SLURM_PROCID"] = first["SLURM_LOCALID"] = first["SLURM_NODEID"] = "0";
  EXPECT_EQ(Found(first), "Slurm 0/7 0/4 0 3 node08:29500");
  Variables more = slurm;
  more["SLURM_NTASKS_PER_NODE"] = "6";
  EXPECT_EQ(Found(more), "Slurm 5/7 1/6 1 3 node08:29500");
  more["SLURM_STEP_TASKS_PER_NODE"] = "4,3";
  more["SLURM_STEP_NUM_TASKS"] = "7";
  more["SLURM_STEP_NODELIST"] = "node09,node08";
  more["MASTER_PORT"] = "4000";
  EXPECT_EQ(Found(more), "Slurm 5/7 1/3 1 3 node09:4000");
  more["SLURM_STEP_TASKS_PER_NODE"] = "4,1";
  EXPECT_EQ(Found(more), "SLURM_LOCALID=1: its node has 1 tasks");
  more["SLURM_STEP_TASKS_PER_NODE"] = "4";
  EXPECT_EQ(Found(more), "SLURM_STEP_TASKS_PER_NODE=4: it does not say how many tasks node 1 has");
  more = slurm;
  more["SLURM_JOB_NODELIST"] = "node[3-";
  EXPECT_EQ(Found(more), "SLURM_JOB_NODELIST: host list node[3-: not understood");
}

TEST(RankEnvironment, SlurmsBatchScriptIsNoTask) {
  Variables batch = {{"SLURM_PROCID", "0"},
                     {"SLURM_LOCALID", "0"},
                     {"SLURM_NODEID", "0"},
                     {"SLURM_NTASKS", "8"},
                     {"SLURM_TASKS_PER_NODE", "4(x2)"},
                     {"SLURM_NNODES", "2"},
                     {"SLURM_JOB_NODELIST", "node[1-2]"}};
  EXPECT_EQ(Found(batch),
            "SLURM_NTASKS=8, but this process alone was started, by sbatch: start it with srun "
            "(with srun --ntasks 1 as one process)");
  // cadre launch in the script starts ranks, too.
  batch["RANK"] = "3";
  batch["WORLD_SIZE"] = "4";
  batch["LOCAL_WORLD_SIZE"] = "4";
  batch["LOCAL_RANK"] = "3";
  EXPECT_THAT(Found(batch), HasSubstr("torchrun 3/4"));
  EXPECT_EQ(Found({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "1"}}), "one process");
}

TEST(RankEnvironment, OpenMpi) {
  Variables mpi = {{"OMPI_COMM_WORLD_RANK", "3"},
                   {"OMPI_COMM_WORLD_SIZE", "4"},
                   {"OMPI_COMM_WORLD_LOCAL_RANK", "3"},
                   {"OMPI_COMM_WORLD_LOCAL_SIZE", "4"},
                   {"SLURM_PROCID", "0"},
                   {"SLURM_NTASKS", "1"}};
  EXPECT_EQ(Found(mpi), "Open MPI 3/4 3/4 0 0 127.0.0.1:29500");
  mpi["OMPI_COMM_WORLD_SIZE"] = "8";
  EXPECT_EQ(Found(mpi), "MASTER_ADDR is not set: Open MPI does not say on which host rank 0 is");
  mpi["MASTER_ADDR"] = "node1";
  EXPECT_EQ(Found(mpi), "Open MPI 3/8 3/4 0 0 node1:29500");
}

TEST(RankEnvironment, KubernetesIndexedJob) {
  Variables job = {{"JOB_COMPLETION_INDEX", "12"}};
  EXPECT_EQ(Found(job, "train-12.svc"), "one process");  // how many there are is not said
  job["WORLD_SIZE"] = "16";
  EXPECT_EQ(Found(job, "train-12.svc.ns"),
            "a Kubernetes indexed job 12/16 0/1 12 0 train-0.svc.ns:29500");
  EXPECT_THAT(Found(job, "other"), HasSubstr("MASTER_ADDR is not set"));
  job["MASTER_ADDR"] = "10.0.0.1";
  EXPECT_THAT(Found(job, "other"), HasSubstr("10.0.0.1:29500"));
  job["WORLD_SIZE"] = "12";
  EXPECT_EQ(Found(job), "JOB_COMPLETION_INDEX=12 and WORLD_SIZE=12 contradict one another");
}

TEST(RankEnvironment, Kubeflow) {
  Variables pet = {{"PET_NNODES", "4"},
                   {"PET_NODE_RANK", "2"},
                   {"PET_MASTER_ADDR", "trainer-node-0-0.trainer"},
                   {"PET_MASTER_PORT", "29400"}};
  EXPECT_EQ(Found(pet), "Kubeflow 2/4 0/1 2 0 trainer-node-0-0.trainer:29400");
  pet["PET_NPROC_PER_NODE"] = "8";  // for a launcher
  EXPECT_EQ(Found(pet), "one process");
  const auto node = FindNodeEnvironment(In(pet), "here");
  ASSERT_TRUE(node.ok());
  EXPECT_EQ(node->nodes->max, 4);
  EXPECT_FALSE(node->nodes->elastic());
  EXPECT_EQ(node->node_rank, 2);
  EXPECT_EQ(node->processes, 8);
  EXPECT_EQ(node->rendezvous->host, "trainer-node-0-0.trainer");
  EXPECT_EQ(node->rendezvous->port, 29400);
  pet["PET_NNODES"] = "1:4";
  EXPECT_EQ(FindNodeEnvironment(In(pet), "here")->nodes->min, 1);
  pet["PET_NNODES"] = "4:1";
  EXPECT_EQ(Message(FindNodeEnvironment(In(pet), "here").status()),
            "PET_NNODES 4:1: MIN is more than MAX");
}

TEST(NodeEnvironment, SlurmAndIndexedJobs) {
  const auto slurm = FindNodeEnvironment(In({{"SLURM_STEP_ID", "0"},
                                             {"SLURM_PROCID", "1"},
                                             {"SLURM_NTASKS", "2"},
                                             {"SLURM_JOB_NODELIST", "a[1-2]"}}),
                                         "a2");
  ASSERT_TRUE(slurm.ok());
  EXPECT_EQ(slurm->nodes->min, 2);
  EXPECT_EQ(slurm->node_rank, 1);
  EXPECT_EQ(slurm->rendezvous->host, "a1");
  const auto job = FindNodeEnvironment(In({{"JOB_COMPLETION_INDEX", "3"}}), "j-3.s");
  ASSERT_TRUE(job.ok());
  EXPECT_FALSE(job->nodes);
  EXPECT_EQ(job->node_rank, 3);
  EXPECT_EQ(job->rendezvous->host, "j-0.s");
  const auto none = FindNodeEnvironment(In({{"SLURM_PROCID", "0"}, {"SLURM_NTASKS", "8"}}), "a");
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->nodes || none->node_rank || none->rendezvous);
}

TEST(HostList, Expands) {
  EXPECT_THAT(*ExpandHostList("a"), ElementsAre("a"));
  EXPECT_THAT(*ExpandHostList("node[1-3,5],login"),
              ElementsAre("node1", "node2", "node3", "node5", "login"));
  EXPECT_THAT(*ExpandHostList("n[08-10]-x"), ElementsAre("n08-x", "n09-x", "n10-x"));
  EXPECT_THAT(*ExpandHostList("r[1-2]n[3-4]"), ElementsAre("r1n3", "r1n4", "r2n3", "r2n4"));
  for (const char* wrong : {"", "a,", "a[", "a]", "a[]", "a[1", "a[2-1]", "a[x]", "a[1-]", "a]1[",
                            "a[[1]]", "a[-1]", "a[9999999999]"}) {
    EXPECT_FALSE(ExpandHostList(wrong).ok()) << wrong;
  }
  EXPECT_THAT(Message(ExpandHostList("a[0-999999999]").status()), HasSubstr("more than 65536"));
}

TEST(TaskCounts, Expand) {
  EXPECT_THAT(*ExpandTaskCounts("2(x3),1"), ElementsAre(2, 2, 2, 1));
  EXPECT_THAT(*ExpandTaskCounts("4"), ElementsAre(4));
  for (const char* wrong : {"", "x", "2(x", "2(x3", "2(y3)", "2(x99999999)", "-1"}) {
    EXPECT_FALSE(ExpandTaskCounts(wrong).ok()) << wrong;
  }
}

}  // namespace
}  // namespace cadre
