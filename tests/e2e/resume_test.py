#!/usr/bin/env python3
"""A training run that is stopped or killed and started again ends with the bits of one that was not.

    python3 tests/e2e/resume_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

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
    return folder.name, lines, files


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
                self.interrupt(run, step, signal.SIGKILL)
                shop.train(run.name, *OVERRIDES)
                self.check_same(run)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
