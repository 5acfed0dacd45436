#!/usr/bin/env python3
"""Training gives the same bits at any thread count and after any interruption: runs of `cadre train`
are killed or stopped at random steps, resumed, and compared with an undisturbed run, every loss and
every byte of weights and optimizer state.

    python3 tests/e2e/same_bits_test.py [--cadre build/release/cadre] [--all] [--seed N] [unittest flags, test names]
"""

import argparse
import ctypes
import json
import os
import random
import select
import signal
import sys
import time
import unittest

import e2e

RUN = """
data: {seq_len: 64, sources: [{path: TOKENS}], validation_fraction: 0.1}
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
  num_attention_heads: 4, num_key_value_heads: 2, vocab_size: 512}
"""
MIXTURE = """
model: {model_type: deepseek_v3, hidden_size: 64, intermediate_size: 96, num_hidden_layers: 3,
  num_attention_heads: 4, num_key_value_heads: 4, vocab_size: 512, q_lora_rank: 24,
  kv_lora_rank: 16, qk_nope_head_dim: 16, qk_rope_head_dim: 16, v_head_dim: 16,
  n_routed_experts: 8, num_experts_per_tok: 2, moe_intermediate_size: 32, n_shared_experts: 1,
  first_k_dense_replace: 1, n_group: 2, topk_group: 1, norm_topk_prob: true,
  routed_scaling_factor: 1.5}
moe: {balance_loss_coef: 0.01, router_z_loss_coef: 1e-3, router_bias_update_rate: 0.01}
"""
STEPS = 30
# Of a line in metrics.jsonl, what differs from run to run.
MEASURED = {"tokens_per_second", "mfu", "step_seconds", "peak_resident_bytes", "planned_bytes"}


def setUpModule():
    global shop
    shop = e2e.Workshop()
    print(f"seed {seed}", file=sys.stderr)


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


def repeatable(line):
    return {key: value for key, value in line.items() if key not in MEASURED}


class Run:
    """One output folder, trained in one or more processes."""

    def __init__(self, name, config, *flags):
        self.folder = shop.folder / name
        self.folder.mkdir()
        path = shop.folder / f"{name}.yaml"
        path.write_text(RUN.replace("TOKENS", str(shop.tokens)) + config, encoding="utf-8")
        self.arguments = ("train", "-c", path, "--output", self.folder, "--quiet", *flags)

    def finish(self):
        """What it logged."""
        return e2e.cadre(*self.arguments).stderr

    def interrupt(self, step, delay, sign):
        """Sends a signal `delay` seconds after `step` was reported; returns the exit code."""
        changes = Changes(self.folder)
        # Until a resumed process cuts the file it holds steps of the one before.
        stale = e2e.metrics(self.folder)
        with e2e.running(*self.arguments) as process:
            while process.poll() is None:
                lines = e2e.metrics(self.folder)
                if lines and lines != stale and lines[-1]["step"] >= step:
                    time.sleep(delay)  # where in the next step it hits, not a wait for anything
                    break
                changes.wait(process)
            changes.close()
            process.send_signal(sign)
            return process.wait(e2e.TIMEOUT)

    def lines(self):
        return [repeatable(line) for line in e2e.metrics(self.folder)]

    def state(self):
        """Bytes of every tensor file of the last checkpoint, and its weight version."""
        last = self.folder / "checkpoints" / f"step-{STEPS:06d}"
        files = {str(f.relative_to(last)): f.read_bytes() for f in last.rglob("*.safetensors")}
        if len(files) < 2:
            raise AssertionError(f"{last} holds only {sorted(files)}")
        files["weight version"] = json.loads((last / "manifest.json").read_text())["weight_version"]
        return files

    def checkpoints(self):
        found = (self.folder / "checkpoints").glob("step-*")
        return sorted(int(f.name[5:]) for f in found if f.name[5:].isdigit())


class SameBits(unittest.TestCase):
    maxDiff = None

    undisturbed = {}

    def reference(self, config):
        if config not in self.undisturbed:
            run = Run(f"reference-{len(self.undisturbed)}", config, "--threads", "1")
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
        pace = e2e.metrics(reference.folder)[-1]["step_seconds"]
        run = Run(name, config, "--threads", "2")
        for step in sorted(rng.sample(range(1, STEPS), kills)):
            delay = rng.uniform(0, 1.5 * pace)
            code = run.interrupt(step, delay, signal.SIGKILL)
            self.assertIn(code, (-signal.SIGKILL, 0), f"killed at step {step}")
        run.finish()
        self.assert_same(run, reference)

    def test_threads(self):
        for name, config in (("dense", DENSE), ("mixture", MIXTURE)):
            with self.subTest(name):
                run = Run(f"threads-{name}", config, "--threads", "2")
                run.finish()
                self.assert_same(run, self.reference(config))

    def test_threads_f32(self):
        runs = []
        for threads in ("1", "2"):
            flags = ("--threads", threads, "--dtype", "f32")
            runs.append(Run(f"f32-{threads}", MIXTURE, *flags))
            runs[-1].finish()
        self.assert_same(runs[1], runs[0])

    def test_killed(self):
        for repeat in range(5 if e2e.Options.long else 1):
            for name, config in (("dense", DENSE), ("mixture", MIXTURE)):
                with self.subTest(name, repeat=repeat):
                    self.killed(f"killed-{name}-{repeat}", config, 2)

    def test_stopped(self):
        for repeat in range(5 if e2e.Options.long else 1):
            with self.subTest(repeat=repeat):
                run = Run(f"stopped-{repeat}", MIXTURE, "--threads", "2")
                step = rng.randrange(1, STEPS - 5)
                self.assertEqual(run.interrupt(step, 0, signal.SIGTERM), 0)
                reached = run.lines()[-1]["step"]
                self.assertGreaterEqual(reached, step)
                self.assertIn(reached, run.checkpoints())
                errors = run.finish()
                if reached < STEPS:
                    self.assertIn(f"at step {reached}", errors)
                self.assert_same(run, self.reference(MIXTURE))

    def test_a_torn_newest_checkpoint_is_passed_over(self):
        run = Run("torn", MIXTURE, "--threads", "2")
        self.assertEqual(run.interrupt(17, 0, signal.SIGTERM), 0)
        weights = max(e2e.last_checkpoint(run.folder).rglob("*.safetensors"), key=lambda p: p.stat().st_size)
        weights.write_bytes(weights.read_bytes()[:-100])
        self.assertIn("passed over", run.finish())
        self.assert_same(run, self.reference(MIXTURE))

    def test_another_seed_differs(self):
        """The comparison can fail."""
        run = Run("seed", DENSE, "--set", "data.seed=99")
        run.finish()
        reference = self.reference(DENSE)
        self.assertNotEqual(run.lines()[0]["loss"], reference.lines()[0]["loss"])
        with self.assertRaises(AssertionError):
            self.assert_same(run, reference)


SHORT = ("lr_schedule.warmup_steps=1", "eval.interval=0")


class Restart(unittest.TestCase):
    """Starts in a used folder that are no resume."""

    def test_another_order_of_the_data_is_refused(self):
        run = shop.train("other-data", "train_steps=2", *SHORT)
        last = e2e.last_checkpoint(run)
        before = e2e.metrics(run), (last / "manifest.json").read_bytes()
        for override in ("data.seed=99", "seed=99", "data.shuffle=false"):
            with self.subTest(override=override):
                line = e2e.refused(*shop.train_arguments(run, "train_steps=4", *SHORT, override), code=2)
                self.assertIn(override.split("=")[0], line)
        self.assertEqual((e2e.metrics(run), (last / "manifest.json").read_bytes()), before)
        e2e.cadre("checkpoint", "verify", last)

    def test_a_fresh_start_sets_old_checkpoints_aside(self):
        run = shop.train("anew", "train_steps=4", *SHORT)
        e2e.cadre(*shop.train_arguments(run, "train_steps=2", *SHORT), "--resume", "never")
        self.assertEqual(e2e.last_checkpoint(run).name, "step-000002")
        shop.train("anew", "train_steps=3", *SHORT)
        self.assertEqual([line["step"] for line in e2e.metrics(run)], [1, 2, 3])


if __name__ == "__main__":
    rest = e2e.parse()
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    flags, rest = parser.parse_known_args(rest)
    seed, rng = flags.seed, random.Random(flags.seed)
    unittest.main(argv=rest)
