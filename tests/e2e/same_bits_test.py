#!/usr/bin/env python3
"""Training gives the same bits at any thread count and after any interruption: runs of `cadre train`
are killed or stopped at random steps, resumed, and compared with an undisturbed run, every loss and
every byte of weights and optimizer state.

    python3 tests/e2e/same_bits_test.py --cadre build/release/cadre [--all] [--seed N]
"""

import argparse
import ctypes
import json
import os
import pathlib
import random
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest

OPTIONS = argparse.Namespace()

RUN = """
data: {seq_len: 64, sources: [{path: CORPUS}], validation_fraction: 0.1}
optimizer: {lr: 2e-3}
lr_schedule: {warmup_steps: 4}
dropout: 0.1
z_loss_coef: 1e-4
global_batch_size: 8
micro_batch_size: 4
train_steps: 30
checkpoint: {interval: 4, keep_last: 2}
eval: {interval: 7, batches: 2}
log: {tensorboard: false}
"""
DENSE = """
model: {model_type: llama, hidden_size: 64, intermediate_size: 160, num_hidden_layers: 2,
  num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 256}
"""
MIXTURE = """
model: {model_type: deepseek_v3, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 3,
  num_attention_heads: 4, num_key_value_heads: 4, vocab_size: 256, q_lora_rank: 24,
  kv_lora_rank: 16, qk_nope_head_dim: 16, qk_rope_head_dim: 16, v_head_dim: 16,
  n_routed_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 32, n_shared_experts: 1,
  first_k_dense_replace: 1, n_group: 2, topk_group: 1, norm_topk_prob: true,
  routed_scaling_factor: 1.5}
moe: {balance_loss_coef: 0.01, router_z_loss_coef: 1e-3, router_bias_update_rate: 0.01}
"""
STEPS = 30
# Of a line in metrics.jsonl, what differs from run to run.
MEASURED = {"tokens_per_second", "mfu", "step_seconds", "peak_resident_bytes", "planned_bytes"}


def write_corpus(prefix, documents=300, vocabulary=256):
    """PREFIX.bin and .idx as Megatron stores them: chains in which a token has few successors."""
    rng = random.Random(1)
    lengths, tokens = [], []
    for _ in range(documents):
        token, length = rng.randrange(vocabulary), rng.randrange(20, 200)
        lengths.append(length)
        for _ in range(length):
            tokens.append(token)
            token = (7 * token + 3 + rng.randrange(3)) % vocabulary
    pathlib.Path(f"{prefix}.bin").write_bytes(struct.pack(f"<{len(tokens)}H", *tokens))
    starts = [2 * sum(lengths[:i]) for i in range(documents)]
    index = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, documents, documents + 1)
    index += struct.pack(f"<{documents}i", *lengths) + struct.pack(f"<{documents}q", *starts)
    index += struct.pack(f"<{documents + 1}q", *range(documents + 1))
    pathlib.Path(f"{prefix}.idx").write_bytes(index)


class Changes:
    """Blocks until something is written in a folder (inotify) or a process ends."""

    MODIFY, CREATE, MOVED_TO = 0x2, 0x100, 0x80

    def __init__(self, folder):
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_CLOEXEC)
        mask = self.MODIFY | self.CREATE | self.MOVED_TO
        if self.fd < 0 or libc.inotify_add_watch(self.fd, os.fsencode(folder), mask) < 0:
            raise OSError(ctypes.get_errno(), "inotify")

    def wait(self, process):
        pid = os.pidfd_open(process.pid)
        ready, _, _ = select.select([self.fd, pid], [], [])
        os.close(pid)
        if self.fd in ready:
            os.read(self.fd, 65536)

    def close(self):
        os.close(self.fd)


def metrics(folder):
    """Whole lines only."""
    file = folder / "metrics.jsonl"
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def untimed(line):
    return {key: value for key, value in line.items() if key not in MEASURED}


class Run:
    """One output folder, trained in one or more processes."""

    def __init__(self, root, name, config, *flags):
        self.folder = root / name
        self.folder.mkdir()
        self.config = root / f"{name}.yaml"
        self.config.write_text(RUN.replace("CORPUS", str(root / "corpus")) + config)
        self.flags = flags

    def start(self):
        command = [OPTIONS.cadre, "train", "-c", self.config, "--output", self.folder, "--quiet"]
        return subprocess.Popen(
            [str(c) for c in (*command, *self.flags)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self):
        process = self.start()
        _, errors = process.communicate()
        if process.returncode != 0:
            raise AssertionError(f"{self.folder}: exit {process.returncode}\n{errors}")
        return errors

    def interrupt(self, step, delay, sign):
        """Sends a signal `delay` seconds after `step` was reported; returns the exit code."""
        changes = Changes(self.folder)
        # Until a resumed process cuts the file it holds steps of the one before.
        stale = metrics(self.folder)
        process = self.start()
        try:
            while process.poll() is None:
                lines = metrics(self.folder)
                if lines and lines != stale and lines[-1]["step"] >= step:
                    time.sleep(delay)  # where in the next step it hits, not a wait for anything
                    break
                changes.wait(process)
            process.send_signal(sign)
            process.communicate()
            return process.returncode
        finally:
            changes.close()
            if process.poll() is None:
                process.kill()

    def lines(self):
        return [untimed(line) for line in metrics(self.folder)]

    def state(self):
        """Bytes of every tensor file of the last checkpoint."""
        last = self.folder / "checkpoints" / f"step-{STEPS:06d}"
        files = {str(f.relative_to(last)): f.read_bytes() for f in last.rglob("*.safetensors")}
        if len(files) < 2:
            raise AssertionError(f"{last} holds only {sorted(files)}")
        return files

    def checkpoints(self):
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted(int(f.name[5:]) for f in found if f.name[5:].isdigit())


class Resume(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.temporary.cleanup)
        cls.root = pathlib.Path(cls.temporary.name)
        write_corpus(cls.root / "corpus")
        cls.undisturbed = {}
        cls.rng = random.Random(OPTIONS.seed)
        print(f"seed {OPTIONS.seed}", file=sys.stderr)

    def reference(self, config):
        if config not in self.undisturbed:
            run = Run(self.root, f"reference-{len(self.undisturbed)}", config, "--threads", "1")
            run.finish()
            self.assertEqual([line["step"] for line in run.lines()], list(range(1, STEPS + 1)))
            self.undisturbed[config] = run
        return self.undisturbed[config]

    def assert_same(self, run, reference):
        self.assertEqual(run.lines(), reference.lines())
        got, want = run.state(), reference.state()
        self.assertEqual(sorted(got), sorted(want))
        for name, data in want.items():
            self.assertTrue(got[name] == data, f"{run.folder.name}: {name} differs")

    def killed(self, name, config, kills):
        """One run, killed at `kills` rising steps."""
        reference = self.reference(config)
        pace = metrics(reference.folder)[-1]["step_seconds"]
        run = Run(self.root, name, config, "--threads", "2")
        for step in sorted(self.rng.sample(range(1, STEPS), kills)):
            delay = self.rng.uniform(0, 1.5 * pace)
            code = run.interrupt(step, delay, signal.SIGKILL)
            self.assertIn(code, (-signal.SIGKILL, 0), f"killed at step {step}")
        run.finish()
        self.assert_same(run, reference)

    def test_threads(self):
        for name, config in (("dense", DENSE), ("mixture", MIXTURE)):
            with self.subTest(name):
                run = Run(self.root, f"threads-{name}", config, "--threads", "2")
                run.finish()
                self.assert_same(run, self.reference(config))

    def test_threads_f32(self):
        runs = []
        for threads in ("1", "2"):
            flags = ("--threads", threads, "--dtype", "f32")
            runs.append(Run(self.root, f"f32-{threads}", MIXTURE, *flags))
            runs[-1].finish()
        self.assert_same(runs[1], runs[0])

    def test_killed(self):
        for repeat in range(5 if OPTIONS.all else 1):
            for name, config in (("dense", DENSE), ("mixture", MIXTURE)):
                with self.subTest(name, repeat=repeat):
                    self.killed(f"killed-{name}-{repeat}", config, 2)

    def test_stopped(self):
        for repeat in range(5 if OPTIONS.all else 1):
            with self.subTest(repeat=repeat):
                run = Run(self.root, f"stopped-{repeat}", MIXTURE, "--threads", "2")
                step = self.rng.randrange(1, STEPS - 5)
                self.assertEqual(run.interrupt(step, 0, signal.SIGTERM), 0)
                reached = run.lines()[-1]["step"]
                self.assertGreaterEqual(reached, step)
                self.assertIn(reached, run.checkpoints())
                errors = run.finish()
                if reached < STEPS:
                    self.assertIn(f"at step {reached}", errors)
                self.assert_same(run, self.reference(MIXTURE))

    def test_another_seed_differs(self):
        """The comparison can fail."""
        run = Run(self.root, "seed", DENSE, "--set", "data.seed=99")
        run.finish()
        reference = self.reference(DENSE)
        self.assertNotEqual(run.lines()[0]["loss"], reference.lines()[0]["loss"])
        with self.assertRaises(AssertionError):
            self.assert_same(run, reference)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--cadre", required=True)
    parser.add_argument("--all", action="store_true", help="20 kills instead of 4")
    parser.add_argument("--seed", type=int, default=1)
    OPTIONS, rest = parser.parse_known_args(namespace=OPTIONS)
    unittest.main(argv=[sys.argv[0], *rest])
