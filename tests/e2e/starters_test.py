#!/usr/bin/env python3
"""Ranks that Slurm and Open MPI start train what `cadre launch` does: a Slurm cluster of two nodes on
this machine, with a key of its own, and `mpirun`. A starter that is not installed is skipped
(tools/install_deps.sh --starters).

    python3 tests/e2e/starters_test.py [--cadre PROGRAM] [unittest flags, test names]
"""

import contextlib
import getpass
import os
import secrets
import shutil
import socket
import subprocess
import unittest

import e2e
from launch_test import free_port

LAYOUT = ("train_steps=20", "parallel.tensor_parallel_size=2", "parallel.zero_stage=2")
NODES = 2


def path_of(program):
    return shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


class Slurm:
    """A cluster in `folder`; ends with its block."""

    CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
PartitionName=all Nodes=ALL Default=YES
"""
    NODE = "NodeName=n{0} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 State=UNKNOWN\n"

    def __init__(self, folder, stack):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        self.stack = stack
        self.configure()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        self.start("munged", "--foreground", "--force", "--key-file", key, "--socket", folder / "munge.socket",
                   "--pid-file", folder / "munge.pid", "--log-file", folder / "munge.log",
                   "--seed-file", folder / "munge.seed")  # fmt: skip
        controller = self.start("slurmctld", "-D")
        for node in range(NODES):
            self.start("slurmd", "-D", "-N", f"n{node}")
        e2e.wait_until(self.ready, controller, "the Slurm cluster is there")

    def configure(self):
        with contextlib.ExitStack() as ports:
            free = [ports.enter_context(free_port()) for _ in range(1 + NODES)]
        host = socket.gethostname()
        text = self.CONFIG.format(host=host, ports=free, folder=self.folder, user=getpass.getuser())
        for node in range(NODES):
            text += self.NODE.format(node, host=host, port=free[1 + node])
            (self.folder / f"spool-n{node}").mkdir()
        (self.folder / "state").mkdir()
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")

    def start(self, program, *arguments):
        log = self.stack.enter_context(open(self.folder / f"{program}.log", "ab"))
        process = subprocess.Popen([path_of(program), *map(str, arguments)], env=self.environment,
                                   stdout=log, stderr=log)

        def end():
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

        self.stack.callback(end)
        return process

    def ready(self):
        done = subprocess.run(["sinfo", "--noheader", "--format", "%D %t"], env=self.environment,
                              capture_output=True, text=True, check=False)
        return done.stdout.split() == [str(NODES), "idle"]


class Starters(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workshop = e2e.Workshop()
        train = cls.train("launched")
        e2e.cadre("launch", "--nproc-per-node", 4, *train)
        cls.expected = cls.losses("launched")

    @classmethod
    def train(cls, name):
        return cls.workshop.train_arguments(cls.workshop.folder / name, *LAYOUT)

    @classmethod
    def losses(cls, name):
        return [line["loss"] for line in e2e.metrics(cls.workshop.folder / name)]

    def run_ranks(self, name, starter, *cadre, environment=os.environ):
        with free_port() as port:
            variables = {**environment, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                         "CADRE_JOB_TOKEN": "secret"}  # fmt: skip
            command = [*starter, e2e.Options.cadre, *cadre, *self.train(name)]
            done = subprocess.run(list(map(str, command)), env=variables, cwd=e2e.ROOT, timeout=e2e.TIMEOUT,
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stderr[-3000:])
        self.assertEqual(self.losses(name), self.expected)
        return done.stderr

    @unittest.skipUnless(path_of("mpirun"), "mpirun is not installed")
    def test_open_mpi(self):
        self.run_ranks("mpirun", ["mpirun", "--allow-run-as-root", "--oversubscribe", "-np", 4,
                                  "-x", "MASTER_ADDR", "-x", "MASTER_PORT", "-x", "CADRE_JOB_TOKEN"])

    @unittest.skipUnless(path_of("slurmctld") and path_of("munged"), "Slurm is not installed")
    def test_slurm(self):
        with contextlib.ExitStack() as stack:
            slurm = Slurm(e2e.temporary_folder(), stack)
            said = self.run_ranks("srun", ["srun", "-N", NODES, "--ntasks-per-node", 2],
                                  environment=slurm.environment)
            self.assertIn("train rank 3: peak memory", said)
            self.run_ranks("srun-launch", ["srun", "-N", NODES, "--ntasks-per-node", 1],
                           "launch", "--nproc-per-node", 2, environment=slurm.environment)
            self.submit_without_srun(slurm)

    def submit_without_srun(self, slurm):
        said = slurm.folder / "batch.out"
        batch = ["sbatch", "--wait", "-N", NODES, "--ntasks-per-node", 2, "--chdir", e2e.ROOT, "--output", said]
        program = ["#!/bin/sh\nexec", e2e.Options.cadre, *self.train("no-srun")]
        done = subprocess.run(list(map(str, batch)), input=" ".join(map(str, program)), timeout=e2e.TIMEOUT,
                              env=slurm.environment, capture_output=True, text=True, check=False)  # fmt: skip
        text = said.read_text(encoding="utf-8")
        self.assertEqual(done.returncode, 2, done.stderr + text)
        self.assertIn("SLURM_NTASKS=4, but this process alone was started, by sbatch: start it with srun", text)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
