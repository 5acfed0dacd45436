"""Training over several processes: the same losses as one process under any layout, a killed rank
that costs nothing, a stopped one that is named.
python3 tests/e2e/ranks_test.py [--cadre PROGRAM] [--all]"""

import contextlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time
import unittest

import e2e
from launch_test import alive, free_port

STEPS = 60
TWO_BY_TWO = ("parallel.tensor_parallel_size=2", "parallel.zero_stage=1")
EXPERTS = ("parallel.expert_parallel_size=4", "parallel.zero_stage=3", "micro_batch_size=2")
PIPELINE = ("parallel.pipeline_parallel_size=2", "parallel.pipeline_schedule=zb_h1")


def children(pid):
    path = pathlib.Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in path.read_text(encoding="utf-8").split()]


class Case(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workshop = e2e.Workshop()

    def arguments(self, name, ranks, *overrides, flags=()):
        train = self.workshop.train_arguments(self.workshop.folder / name, *overrides)
        return ["launch", "--nproc-per-node", ranks, *flags, *train]

    def launch(self, name, ranks, *overrides, flags=()):
        e2e.cadre(*self.arguments(name, ranks, *overrides, flags=flags))
        return self.workshop.folder / name

    def losses(self, run):
        return [line["loss"] for line in e2e.metrics(run)]

    def assert_close(self, run, expected, bound):
        losses = self.losses(run)
        self.assertEqual(len(losses), len(expected))
        for step, (got, wanted) in enumerate(zip(losses, expected), 1):
            self.assertLess(abs(got - wanted), bound * wanted, f"step {step}")


class Layouts(Case):
    def test_processes_train_what_one_does(self):
        alone = self.losses(self.workshop.train("alone", "dtype=f32", "train_steps=20"))
        for ranks, overrides in ((2, ()), (4, TWO_BY_TWO), (2, ("parallel.expert_parallel_size=2",)),
                                 (2, PIPELINE)):
            with self.subTest(ranks=ranks, overrides=overrides):
                name = f"f32-{ranks}-{'-'.join(overrides)}".replace("/", "-")
                run = self.launch(name, ranks, "dtype=f32", "train_steps=20", *overrides)
                self.assert_close(run, alone, 1e-4)

    def test_the_transport_changes_no_bit(self):
        shm = self.losses(self.launch("shm", 2, "comm.transport=shm"))
        ucx = self.losses(self.launch("ucx", 2, "comm.transport=ucx"))
        self.assertEqual(len(shm), STEPS)
        self.assertEqual(shm, ucx)


class Traces(Case):
    """All ranks on one timeline."""

    def parts(self, trace):
        return sorted(trace.parent.glob(trace.name + ".rank*"))

    def test_a_run_leaves_one_trace_of_all_ranks(self):
        trace = self.workshop.folder / "trace.json"
        arguments = self.arguments("traced", 4, "train_steps=3", "lr_schedule.warmup_steps=1", *TWO_BY_TWO,
                                   "parallel.zero_stage=2")  # fmt: skip
        done = e2e.cadre(*arguments, "--trace", trace)
        self.assertEqual(self.parts(trace), [])
        events = json.loads(trace.read_text(encoding="utf-8"))
        names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
        self.assertEqual(names, {0: "rank 0 (tp 0, dp 0)", 1: "rank 1 (tp 1, dp 0)",
                                 2: "rank 2 (tp 0, dp 1)", 3: "rank 3 (tp 1, dp 1)"})
        rows = {(e["pid"], e["args"]["name"]) for e in events if e["name"] == "thread_name"}
        flights = [e for e in events if e.get("cat") == "collective" and e["ph"] == "b"]
        ends = [e for e in events if e.get("cat") == "collective" and e["ph"] == "e"]
        self.assertEqual(sorted(e["id"] for e in flights), sorted(e["id"] for e in ends))
        for rank in range(4):
            self.assertLessEqual({(rank, "compute"), (rank, "waits")}, rows)
            own = [e for e in flights if e["pid"] == rank]
            self.assertTrue(any(e["args"]["group"] == "tp" and e["args"]["label"] == "attention"
                                and e["args"]["layer"] == 1 for e in own))
            buckets = [e["args"] for e in own if "bucket" in e["args"]]
            self.assertGreater(len({args["bucket"] for args in buckets}), 2)
            for args in buckets:
                self.assertIn("gradients", args["label"])
                self.assertGreater(args["bytes"], 0)
                self.assertIn(args["group"], ("dp_cp", "stage", "edp", "etp_edp"))
                self.assertIn(rank, map(int, args["ranks"].split(", ")))
                self.assertAlmostEqual(args["hidden_us"] + args["waited_us"], args["in_flight_us"], delta=0.01)
                self.assertGreaterEqual(args["hidden"], 0)
                self.assertLessEqual(args["hidden"], 1)
            # Every bucket once a step.
            self.assertEqual(len(buckets), 3 * len({args["bucket"] for args in buckets}))
        # On one clock nobody is through a barrier before all have come.
        barrier = [e for e in flights if e["args"]["operation"] == "barrier" and e["args"]["label"] == "end"]
        self.assertEqual({e["pid"] for e in barrier}, {0, 1, 2, 3})
        self.assertLessEqual(max(e["ts"] for e in barrier),
                             min(e["ts"] + e["args"]["in_flight_us"] for e in barrier))
        self.assertRegex(done.stderr, r"dp_cp +gradients +\d+ +[\d.]+ \w+ +[\d.]+ s +\d+ %")

    def test_a_failed_run_leaves_parts_that_merge(self):
        trace = self.workshop.folder / "cut.json"
        arguments = self.arguments("cut", 2, "train_steps=100000")
        with e2e.running(*arguments, "--trace", trace) as job:
            run = self.workshop.folder / "cut"
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= 10, job, "some steps")
            os.kill(children(job.pid)[1], signal.SIGKILL)
            job.wait(e2e.TIMEOUT)
        self.assertFalse(trace.exists())
        self.assertEqual(len(self.parts(trace)), 2)
        done = e2e.cadre("trace", "merge", *self.parts(trace), "-o", trace)
        self.assertIn("ranks 0, 1", done.stdout.replace("0-1", "0, 1"))
        events = json.loads(trace.read_text(encoding="utf-8"))
        self.assertEqual({e["pid"] for e in events}, {0, 1})
        line = e2e.refused("trace", "merge", trace, "-o", self.workshop.folder / "none.json")
        self.assertIn("not the trace of a rank", line)


class Faults(Case):
    """What `kill -9` of a rank costs: some time."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.rng = random.Random(int.from_bytes(os.urandom(4), "little"))
        cls.settings = ("checkpoint.interval=5", *TWO_BY_TWO)

    def test_a_killed_rank_changes_no_loss(self):
        layouts = [TWO_BY_TWO, EXPERTS, PIPELINE] if e2e.Options.long else [TWO_BY_TWO, EXPERTS]
        undisturbed = [self.losses(self.launch(f"undisturbed-{i}", 4, "checkpoint.interval=5", *layout))
                       for i, layout in enumerate(layouts)]  # fmt: skip
        for kill in range(20 if e2e.Options.long else 4):
            run = self.workshop.folder / f"killed-{kill}"
            layout, expected = layouts[kill % len(layouts)], undisturbed[kill % len(layouts)]
            step, rank = self.rng.randrange(1, STEPS - 5), self.rng.randrange(4)
            arguments = self.arguments(run.name, 4, "checkpoint.interval=5", *layout,
                                       flags=["--max-restarts", 1])  # fmt: skip
            with self.subTest(step=step, rank=rank, layout=layout), e2e.running(*arguments) as job:
                e2e.wait_until(lambda r=run, s=step: len(e2e.metrics(r)) >= s, job, "the step")
                os.kill(children(job.pid)[rank], signal.SIGKILL)
                self.assertEqual(job.wait(e2e.TIMEOUT), 0, job.output())
                self.assertIn("was killed by signal 9 (SIGKILL); all ranks start again", job.output())
                self.assertEqual(self.losses(run), expected)
            shutil.rmtree(run)

    def test_a_restart_resumes_a_job_that_began_anew(self):
        save = ("checkpoint.interval=5",)
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                expected = self.losses(self.launch(f"anew-{ranks}", ranks, *save))
                run = self.workshop.folder / f"anew-{ranks}"
                arguments = self.arguments(run.name, ranks, *save, flags=["--max-restarts", 1])
                with e2e.running(*arguments, "--resume", "never") as job:
                    def saved():
                        # Which one it is does not matter: none stays for long.
                        return ((run / "checkpoints/step-000060.abandoned").exists()
                                and (run / "checkpoints/latest").exists())
                    e2e.wait_until(saved, job, "a checkpoint of its own")
                    os.kill(children(job.pid)[0], signal.SIGKILL)
                    self.assertEqual(job.wait(e2e.TIMEOUT), 0, job.output())
                    self.assertRegex(job.output(), "all ranks start again(.|\\n)*resumed from .* at step")
                self.assertEqual(self.losses(run), expected)
                self.assertFalse((run / "checkpoints/step-000005.abandoned").exists())

    def test_a_start_that_fails_before_it_begins_anew_leaves_that_to_the_next(self):
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                run = self.launch(f"late-{ranks}", ranks, "checkpoint.interval=5")
                expected = self.losses(run)
                data = self.workshop.folder / f"late-tokens-{ranks}"
                kinds = (".bin", ".idx")
                for kind in kinds:  # links to themselves: there, and cannot be opened
                    pathlib.Path(f"{data}{kind}").symlink_to(f"{data}{kind}")
                arguments = self.arguments(run.name, ranks, "checkpoint.interval=5",
                                           f"data.sources[0].path={data}", flags=["--max-restarts", 1000])
                with e2e.running(*arguments, "--resume", "never") as job:
                    e2e.wait_until(lambda: "start again" in job.output(), job, "a start failed")
                    for kind in kinds:
                        whole = pathlib.Path(f"{data}{kind}.whole")
                        whole.symlink_to(f"{self.workshop.tokens}{kind}")
                        whole.replace(f"{data}{kind}")
                    self.assertEqual(job.wait(e2e.TIMEOUT), 0, job.output())
                    self.assertNotIn("resumed from", job.output())
                self.assertTrue((run / "checkpoints/step-000060.abandoned").exists())
                self.assertEqual(self.losses(run), expected)
                self.assertFalse((run / ".begins-anew").exists())

    def test_a_run_that_bad_steps_stop_is_not_started_again(self):
        done = e2e.cadre(*self.arguments("spikes", 2, "bad_step.on_spike=stop", "bad_step.spike_factor=1",
                                         "bad_step.spike_window=8", flags=["--max-restarts", 3]), code=4)
        self.assertIn("stopped by bad_step", done.stderr)
        self.assertNotIn("start again", done.stderr)

    def test_a_folder_that_cannot_be_made_is_no_lost_peer(self):
        (self.workshop.folder / "file").write_text("")
        done = e2e.cadre(*self.arguments("file/run", 2), code=1)
        self.assertIn("file/run: cannot create", done.stderr)

    def test_the_data_parallel_size_may_change_where_a_job_resumes(self):
        save = ("micro_batch_size=1", "checkpoint.interval=5")
        changes = self.launch("changes", 4, *save, "train_steps=10")
        shutil.copytree(changes, self.workshop.folder / "killed", symlinks=True)
        self.launch("changes", 2, *save)
        # Goes on with four and is killed before it saves again; two ranks go on from what there is.
        arguments = self.arguments("killed", 4, "micro_batch_size=1", "checkpoint.interval=1000")
        with e2e.running(*arguments) as job:
            run = self.workshop.folder / "killed"
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= 13, job, "the step")
            os.kill(children(job.pid)[3], signal.SIGKILL)
            self.assertEqual(job.wait(e2e.TIMEOUT), 128 + signal.SIGKILL, job.output())
        self.launch("killed", 2, *save)
        self.assertEqual(self.losses(run), self.losses(changes))

    def test_without_restarts_the_killed_one_is_named(self):
        arguments = self.arguments("ended", 4, *self.settings, "train_steps=100000")
        with e2e.running(*arguments) as job:
            run = self.workshop.folder / "ended"
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= 3, job, "some steps")
            ranks = children(job.pid)
            os.kill(ranks[2], signal.SIGKILL)
            self.assertEqual(job.wait(e2e.TIMEOUT), 128 + signal.SIGKILL, job.output())
            self.assertIn("error: rank 2 was killed by signal 9 (SIGKILL)", job.output())

    def test_a_stopped_rank_is_named_with_operation_and_layer(self):
        def reports():
            return [l for l in job.output().splitlines() if "rank 1 hangs (stopped by a signal) in " in l]

        arguments = self.arguments("stopped", 4, *TWO_BY_TWO, "train_steps=100000")
        with e2e.running(*arguments) as job:
            run = self.workshop.folder / "stopped"
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= 10, job, "some steps")
            ranks = children(job.pid)
            # Between layers there is none to name.
            for _ in range(8):
                before = len(reports())
                os.kill(ranks[1], signal.SIGSTOP)
                e2e.wait_until(lambda n=before: len(reports()) > n, job, "the report")
                line = reports()[-1]
                self.assertRegex(line, r" in .+ at step \d+; ")
                if re.search(r"signal\) in [^;]*layer [01]", line):
                    break
                steps = len(e2e.metrics(run))
                os.kill(ranks[1], signal.SIGCONT)
                # Stopped before anything moved, it would be the same hang.
                e2e.wait_until(lambda n=steps: len(e2e.metrics(run)) > n + 1, job, "another step")
            self.assertRegex(line, r"signal\) in [^;]*layer [01]")
            # The watchdog looks several times a second.
            steps = sorted(step["step_seconds"] for step in e2e.metrics(run))
            bound = max(3 * steps[len(steps) // 2], 2.0)
            waited = float(re.search(r"since ([0-9.]+) s", line).group(1))
            self.assertLess(waited, bound + 1.0)
            os.kill(ranks[1], signal.SIGCONT)
            job.send_signal(signal.SIGINT)
            job.wait(e2e.TIMEOUT)

    def assert_saved(self, run):
        last = e2e.metrics(run)[-1]["step"]
        self.assertEqual(e2e.last_checkpoint(run).name, f"step-{last:06d}")

    def test_the_ranks_of_a_killed_launcher_save(self):
        for kill in range(10 if e2e.Options.long else 3):
            run = self.workshop.folder / f"orphans-{kill}"
            arguments = self.arguments(run.name, 2, "train_steps=100000")
            with self.subTest(kill=kill), e2e.running(*arguments) as job:
                e2e.wait_until(lambda r=run: len(e2e.metrics(r)) >= 5, job, "some steps")
                ranks = children(job.pid)
                job.send_signal(signal.SIGKILL)
                job.wait()
                deadline = time.monotonic() + e2e.TIMEOUT
                while any(alive(rank) for rank in ranks):
                    self.assertLess(time.monotonic(), deadline)
                    time.sleep(0.02)
                self.assert_saved(run)

    def test_ranks_that_get_a_signal_from_others_too_save(self):
        arguments = self.arguments("signalled", 2, "train_steps=100000")
        run = self.workshop.folder / "signalled"
        with e2e.running(*arguments) as job:
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= 5, job, "some steps")
            # As a service manager does: all processes of a job, all at once.
            for process in (job.pid, *children(job.pid)):
                os.kill(process, signal.SIGTERM)
            self.assertEqual(job.wait(e2e.TIMEOUT), 0, job.output())
        self.assert_saved(run)

    def test_ctrl_c_saves_and_goes_on(self):
        arguments = self.arguments("interrupted", 2, "train_steps=100000")
        run = self.workshop.folder / "interrupted"
        with e2e.running(*arguments) as job:
            e2e.wait_until(lambda: len(e2e.metrics(run)) >= 5, job, "some steps")
            job.send_signal(signal.SIGINT)
            self.assertEqual(job.wait(e2e.TIMEOUT), 0, job.output())
        done = len(e2e.metrics(run))
        self.launch("interrupted", 2, f"train_steps={done + 3}")
        self.assertEqual(len(e2e.metrics(run)), done + 3)


class Elastic(Case):
    """Nodes come and go; the data-parallel size follows, and so do the bits."""

    SETTINGS = ("dtype=f32", "global_batch_size=12", "micro_batch_size=1", "lr_schedule.decay_steps=100")

    def setUp(self):
        os.environ["CADRE_JOB_TOKEN"] = "secret"
        self.addCleanup(os.environ.pop, "CADRE_JOB_TOKEN")
        self.ranks = 1  # a node
        self.settings = self.SETTINGS

    def node(self, name, number, port):
        flags = ["--nnodes", "1:3", "--node-rank", number, "--rdzv-endpoint", f"127.0.0.1:{port}",
                 "--rdzv-last-call", 1, "--max-restarts", 1]
        return self.enterContext(e2e.running(*self.arguments(
            name, self.ranks, *self.settings, "train_steps=100000", "checkpoint.interval=5", flags=flags)))

    def starts(self, output):
        """(ranks, step) of each start that came to train, from what node 0 says."""
        found, ranks, step = [], 0, 0
        for line in output.splitlines():
            if match := re.search(r"start \d+: (\d+) ranks on", line):
                ranks, step = int(match.group(1)), 0
            elif match := re.search(r"resumed from .* at step (\d+)", line):
                step = int(match.group(1))
            elif "tokens an epoch" in line:
                found.append((ranks, step))
        return found

    def wait_for(self, run, job, nodes, steps):
        """Until so many nodes have trained so many steps in one start."""
        def there():
            starts = self.starts(job.output())
            last = starts and starts[-1]
            return last and last[0] == nodes * self.ranks and len(e2e.metrics(run)) >= last[1] + steps
        e2e.wait_until(there, job, f"{nodes} nodes train")

    def lose(self, node, told):
        """Its machine is taken away: told to go first, or just gone."""
        if told:
            node.send_signal(signal.SIGTERM)
            self.assertEqual(node.wait(e2e.TIMEOUT), 0, node.output())
            return
        for pid in (node.pid, *children(node.pid)):
            os.kill(pid, signal.SIGKILL)

    def shrink_and_grow(self, name, rng, told):
        run, lost, step = self.workshop.folder / name, rng.randrange(1, 3), rng.randrange(6, 20)
        with free_port() as port:
            nodes = [self.node(name, number, port) for number in range(3)]
            self.wait_for(run, nodes[0], 3, step)
            e2e.wait_until((run / "checkpoints/latest").exists, nodes[0], "a checkpoint")
            self.lose(nodes[lost], told)
            self.wait_for(run, nodes[0], 2, rng.randrange(1, 6))
            nodes[lost] = self.node(name, lost, port)
            self.wait_for(run, nodes[0], 3, 3)
            nodes[0].send_signal(signal.SIGINT)
            for node in nodes:
                self.assertEqual(node.wait(e2e.TIMEOUT), 0, node.output())
        return run, self.starts(nodes[0].output())

    def check(self, name, rng, told):
        run, starts = self.shrink_and_grow(name, rng, told)
        losses = self.losses(run)
        ends = [step for _, step in starts[1:]] + [len(losses)]
        with self.subTest(name, starts=starts, ends=ends):
            self.assertEqual([ranks for ranks, _ in starts][-3:], [n * self.ranks for n in (3, 2, 3)])
            for (ranks, begin), end in zip(starts, ends):
                if end > begin:
                    made = self.launch(f"made-{name}", ranks, *self.settings, f"train_steps={end}")
            self.assertEqual(losses, self.losses(made))

    def test_a_lost_node_and_its_return_change_the_size_alone(self):
        seed = int.from_bytes(os.urandom(4), "little")
        rng = random.Random(seed)
        self.check(f"gone-{seed}", rng, told=False)
        if not e2e.Options.long:
            return
        for number in range(3):
            self.check(f"told-{number}-{seed}", rng, told=True)
            self.check(f"gone-{number}-{seed}", rng, told=False)
        self.ranks = 2
        self.settings = (*self.SETTINGS, "parallel.tensor_parallel_size=2", "parallel.zero_stage=3")
        for told in (False, True):
            self.check(f"tensor-{told}-{seed}", rng, told)


class Refusals(Case):
    """One clear line, before any rank starts."""

    def refused(self, ranks, *overrides):
        line = e2e.refused(*self.arguments("refused", ranks, *overrides), code=2)
        self.assertFalse((self.workshop.folder / "refused").exists())
        return line

    def test_layouts_that_do_not_divide(self):
        self.assertIn("does not divide a world of 4",
                      self.refused(4, "parallel.tensor_parallel_size=3"))
        self.assertIn("global_batch_size 8 is not a multiple of", self.refused(3))
        self.assertIn("num_attention_heads", self.refused(8, "parallel.tensor_parallel_size=8"))
        self.assertIn("num_experts 4 is not a multiple of",
                      self.refused(3, "parallel.expert_parallel_size=3", "global_batch_size=12"))

    def test_options_that_do_nothing(self):
        self.assertIn("zero_prefetch 4 does nothing with zero_stage 1", self.refused(2, "parallel.zero_prefetch=4"))
        self.assertIn("ring does nothing with context_parallel_size 1",
                      self.refused(2, "parallel.context_parallel_method=ring"))

    def test_what_all_ranks_find_wrong_is_said_once(self):
        for override, words in (("data.sources[0].path=/no/such", "/no/such.idx: cannot open"),
                                ("lr_schedule.warmup_steps=100000", "100000 is past the end")):
            with self.subTest(words):
                done = e2e.cadre(*self.arguments("wrong", 4, "micro_batch_size=2", override), code=None)
                said, ended = [l for l in done.stderr.splitlines() if "error: " in l]
                self.assertIn(words, said)
                self.assertRegex(ended, r"^error: rank \d exited with code [12]$")

    def ends(self, ranks):
        """What each of some ranks says last, started with no launcher: (program, overrides) of each."""
        with free_port() as port, contextlib.ExitStack() as stack:
            def start(rank, program, overrides):
                arguments = self.workshop.train_arguments(self.workshop.folder / "differ", *overrides)
                environment = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(len(ranks)),
                               "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(len(ranks)),
                               "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                process = stack.enter_context(subprocess.Popen(
                    [program, *map(str, arguments)], env=environment, stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE, text=True, cwd=e2e.ROOT))
                stack.callback(process.kill)
                return process
            processes = [start(rank, *of) for rank, of in enumerate(ranks)]
            says = [process.communicate(timeout=e2e.TIMEOUT)[1] for process in processes]
            self.assertEqual([process.returncode for process in processes], [2] * len(ranks), says)
        self.assertFalse((self.workshop.folder / "differ").exists())
        return [said.splitlines()[-1] for said in says]

    def test_ranks_that_differ_are_named(self):
        same = (e2e.Options.cadre, ())
        for line in self.ends([same, (e2e.Options.cadre, ("seed=7",))]):
            self.assertEqual(line, "error: configuration: seed is 7 on rank 1, 1234 on rank 0; "
                                   "all must have the same")
        # One byte that no code reads makes another program.
        other = shutil.copy(e2e.Options.cadre, self.workshop.folder / "other")
        with open(other, "ab") as file:
            file.write(b"x")
        for line in self.ends([same, (other, ()), same]):
            self.assertRegex(line, r"error: program: rank 1 has \w+, ranks 0, 2 have \w+; "
                                   r"all must have the same")

    def test_a_checkpoint_of_another_model(self):
        self.launch("model-a", 2, "train_steps=8")
        done = e2e.cadre(*self.arguments("model-a", 2, "train_steps=12", "model.num_hidden_layers=3"),
                         code=None)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("the checkpoint's model differs from this run's", done.stderr)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
