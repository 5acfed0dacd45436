#!/usr/bin/env python3
"""A training run that is stopped or killed and started again ends with the bits of one that was not.

    python3 tests/e2e/resume_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

import json
import random
import signal
import unittest

import e2e

STEPS = 40
OVERRIDES = (f"train_steps={STEPS}", "checkpoint.interval=5", "checkpoint.keep_last=2", "eval.interval=0")


def setUpModule():
    global shop, undisturbed
    shop = e2e.Workshop()
    undisturbed = outcome(shop.train("undisturbed", *OVERRIDES))


def outcome(run):
    """Losses and gradient norms of all steps, and every tensor file of the last checkpoint."""
    lines = [(line["step"], line["loss"], line["grad_norm"]) for line in e2e.metrics(run)]
    folder = e2e.last_checkpoint(run)
    files = {path.relative_to(folder).as_posix(): path.read_bytes()
             for path in folder.rglob("*.safetensors")}
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files["weight version"] = str(find(manifest, "weight_version")).encode()
    return folder.name, lines, files


def find(tree, key):
    """The value of the key, wherever it lies in nested objects."""
    if not isinstance(tree, dict):
        return None
    if key in tree:
        return tree[key]
    return next((value for value in (find(branch, key) for branch in tree.values()) if value is not None), None)


class Resume(unittest.TestCase):
    def check_same(self, run):
        name, lines, files = outcome(run)
        self.assertEqual((name, lines), undisturbed[:2])
        self.assertEqual(sorted(files), sorted(undisturbed[2]))
        for path, data in files.items():
            self.assertTrue(data == undisturbed[2][path], f"{path}: other bits")

    def interrupt(self, run, step, how):
        """Starts or resumes the run and sends the signal once `step` steps are done."""
        with e2e.running(*shop.train_arguments(run, *OVERRIDES)) as process:
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= step, process, f"{step} steps")
            process.send_signal(how)
            return process.wait(e2e.TIMEOUT), process.output()

    def test_sigterm_saves_and_exits_0(self):
        run = shop.folder / "stopped"
        code, output = self.interrupt(run, 7, signal.SIGTERM)
        self.assertEqual(code, 0, output[-3000:])
        saved = int(e2e.last_checkpoint(run).name.removeprefix("step-"))
        self.assertEqual(saved, len(e2e.metrics(run)))
        self.assertLess(saved, STEPS)
        shop.train("stopped", *OVERRIDES)
        self.check_same(run)

    def test_a_kill_loses_no_bit(self):
        run = shop.folder / "killed"
        for step in (13, 29):
            self.assertEqual(self.interrupt(run, step, signal.SIGKILL)[0], -signal.SIGKILL)
        shop.train("killed", *OVERRIDES)
        self.check_same(run)

    def test_a_torn_newest_checkpoint_is_passed_over(self):
        run = shop.folder / "torn"
        self.interrupt(run, 17, signal.SIGTERM)
        weights = max(e2e.last_checkpoint(run).rglob("*.safetensors"), key=lambda p: p.stat().st_size)
        weights.write_bytes(weights.read_bytes()[:-100])
        shop.train("torn", *OVERRIDES)
        self.check_same(run)

    def test_kills_at_random_steps(self):
        if not e2e.Options.long:
            self.skipTest("20 runs (--all)")
        rng = random.Random(11)
        for i in range(20):
            run = shop.folder / f"random-{i}"
            step = rng.randrange(1, STEPS - 1)
            with self.subTest(step=step):
                self.assertEqual(self.interrupt(run, step, signal.SIGKILL)[0], -signal.SIGKILL)
                shop.train(run.name, *OVERRIDES)
                self.check_same(run)

    def test_another_order_of_the_data_is_refused(self):
        run = shop.folder / "other-data"
        shop.train(run.name, "train_steps=2", "lr_schedule.warmup_steps=1", "eval.interval=0")
        before = outcome(run)
        for override in ("data.seed=99", "seed=99", "data.shuffle=false"):
            with self.subTest(override=override):
                line = e2e.refused(*shop.train_arguments(run, "train_steps=4", "lr_schedule.warmup_steps=1",
                                                         "eval.interval=0", override), code=2)
                self.assertIn(override.split("=")[0], line)
        self.assertEqual(outcome(run), before)

    def test_a_fresh_start_sets_old_checkpoints_aside(self):
        run = shop.folder / "anew"
        short = ("lr_schedule.warmup_steps=1", "eval.interval=0")
        shop.train(run.name, "train_steps=4", *short)
        e2e.cadre(*shop.train_arguments(run, "train_steps=2", *short), "--resume", "never")
        self.assertEqual(e2e.last_checkpoint(run).name, "step-000002")
        shop.train(run.name, "train_steps=3", *short)
        self.assertEqual([line["step"] for line in e2e.metrics(run)], [1, 2, 3])


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
