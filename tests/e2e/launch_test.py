#!/usr/bin/env python3
"""`cadre launch`: exit codes, culprits, logs, signals, hangs, restarts, several nodes. The ranks are
tests/e2e/rank_program.cc, which does as it is told.

    python3 tests/e2e/launch_test.py [--cadre build/release/cadre] [unittest flags, test names]
"""

import contextlib
import os
import pathlib
import pty
import signal
import socket
import subprocess
import time
import unittest

import e2e

CODE_PEER_LOST = 3


def program():
    return e2e.Options.cadre.parent / "cadre_rank_program"


def arguments(flags, actions, ranks):
    return ["launch", "--nproc-per-node", ranks, *flags, "--program", program(), *actions]


def launch(*actions, flags=(), ranks=4, code=0):
    """Runs the launcher to its end; asserts its exit code."""
    return e2e.cadre(*arguments(flags, actions, ranks), code=code)


def launching(*actions, flags=(), ranks=4):
    return e2e.running(*arguments(flags, actions, ranks))


def last_line(done):
    return done.stderr.rstrip().splitlines()[-1]


def state(pid):
    """As in /proc/PID/stat; X where there is none."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return "X"
    return stat.rsplit(")", 1)[1].split()[0]


def alive(pid):
    """Whether it runs: a dead one that nobody has waited for does not."""
    return state(pid) not in "ZX"


def pending(pid):
    """Whether a signal to the process has not been taken."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("ShdPnd:"))
    return int(line.split()[1], 16) != 0


def stop(process):
    process.send_signal(signal.SIGSTOP)
    e2e.wait_until(lambda: state(process.pid) == "T", process, "it is stopped")


@contextlib.contextmanager
def free_port():
    """A port that stays free for whoever allows reuse, as the rendezvous does."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = e2e.temporary_folder()

    def pids(self, process, ranks):
        """Of the ranks, once each has written it by `*:file=FOLDER/` ... ."""
        paths = [self.folder / f"pid{rank}" for rank in ranks]
        e2e.wait_until(lambda: all(path.exists() for path in paths), process, "the ranks run")
        return [int(path.read_text(encoding="utf-8")) for path in paths]

    def files(self, ranks=range(4)):
        return [f"{rank}:file={self.folder}/pid{rank}" for rank in ranks]

    def wait_for(self, process, text):
        e2e.wait_until(lambda: text in process.output(), process, f"the launcher says {text!r}")

    def assert_ended(self, process, pids, code):
        self.assertEqual(process.wait(e2e.TIMEOUT), code, process.output())
        self.assertEqual([pid for pid in pids if alive(pid)], [])


class Ends(Case):
    def test_all_well(self):
        done = launch("*:gather=a", "*:out=hello", "*:say=world")
        self.assertEqual((done.stdout, done.stderr), ("hello\n", "world\n"))

    def test_flight_records_are_removed(self):
        done = launch("*:environ=CADRE_FLIGHT_RECORD")
        record = pathlib.Path(done.stdout.strip().split("=")[1])
        self.assertEqual(record.name, "rank-0000")
        self.assertFalse(record.parent.exists())

    def test_a_ranks_exit_code_is_the_launchers(self):
        done = launch("*:gather=a", "2:say=error: no bread", "2:exit=7", "*:hold", code=7)
        self.assertEqual(done.stderr, "[rank 2] error: no bread\nerror: rank 2 exited with code 7\n")

    def test_a_signal_is_128_and_itself(self):
        done = launch("*:gather=a", "3:crash", "*:hold", code=128 + signal.SIGABRT)
        self.assertEqual(last_line(done), "error: rank 3 was killed by signal 6 (SIGABRT)")

    def test_one_that_lost_a_peer_is_shown_after_the_one_that_died(self):
        # 0 and 1 hear of it first and say so, the launcher before anybody else.
        with launching("*:gather=a", *self.files(), "0:say=error: rank 3 is lost",
                       f"0:exit={CODE_PEER_LOST}", "1:say=error: rank 3 is lost, too",
                       f"1:exit={CODE_PEER_LOST}", "*:hold") as process:
            pids = self.pids(process, range(4))
            e2e.wait_until(lambda: not alive(pids[0]), process, "rank 0 ended")
            os.kill(pids[3], signal.SIGKILL)
            self.assert_ended(process, pids, 128 + signal.SIGKILL)
            *lost, last = process.output().splitlines()
            self.assertEqual(sorted(lost), ["[rank 1] error: rank 3 is lost, too",
                                            "error: rank 3 is lost"])
            self.assertEqual(last, "error: rank 3 was killed by signal 9 (SIGKILL)")

    def test_where_nobody_else_died_the_first_that_lost_a_peer_is_it(self):
        done = launch("1:say=error: lost", f"1:exit={CODE_PEER_LOST}", "*:hold", code=CODE_PEER_LOST)
        self.assertEqual(done.stderr, "[rank 1] error: lost\nerror: rank 1 exited with code 3\n")

    def test_a_killed_rank_ends_all_soon(self):
        with launching(*self.files(), "*:hold") as process:
            pids = self.pids(process, range(4))
            began = time.monotonic()
            os.kill(pids[1], signal.SIGKILL)
            self.assert_ended(process, pids, 128 + signal.SIGKILL)
            print(f"a killed rank: all ended after {time.monotonic() - began:.2f} s (bound: 2 s)")

    def test_an_error_of_all_ranks_is_said_once(self):
        done = launch("*:gather=a", "*:say=error: no bread", "*:exit=7", code=7)
        self.assertEqual(len(done.stderr.splitlines()), 2, done.stderr)
        self.assertEqual(done.stderr.count("no bread"), 1, done.stderr)
        # Those that say it when the launcher knows already who ended the job.
        script = ("cd $0; no() { echo 'error: no bread' >&2; exit 7; }; trap no TERM; touch $RANK; "
                  "if [ $RANK = 1 ]; then until [ -e 0 -a -e 2 ]; do sleep 0.02; done; no; fi; "
                  "sleep 1000 & wait")
        done = e2e.cadre("launch", "--nproc-per-node", 3, "--program", "/usr/bin/env", "sh", "-c", script,
                         self.folder, code=7)
        self.assertEqual(done.stderr, "[rank 1] error: no bread\nerror: rank 1 exited with code 7\n")

    def test_a_usage_error_starts_nothing_again(self):
        done = launch("*:say=error: --what: no such option", "*:exit=2", flags=["--max-restarts", 3],
                      code=2)
        self.assertEqual(done.stderr.count("--what"), 1, done.stderr)

    def test_many_ranks_under_a_small_limit_of_open_files(self):
        command = [e2e.Options.cadre, *map(str, arguments((), ["*:gather=a"], 16))]
        done = subprocess.run(["sh", "-c", 'ulimit -Sn 40; exec "$@"', "sh", *command], timeout=e2e.TIMEOUT,
                              capture_output=True, text=True, check=False)  # fmt: skip
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_a_program_that_is_not_there(self):
        line = e2e.refused("launch", "--nproc-per-node", 2, "--program", "/no/such", "x", code=1)
        self.assertIn("/no/such", line)


class Output(Case):
    def test_logs_have_all_and_the_terminal_what_matters(self):
        logs = self.folder / "logs"
        done = launch("*:gather=a", "*:say=plain", "1:say=warning: slow", "*:out=result",
                      flags=["--log-dir", logs])
        self.assertEqual(done.stdout, "result\n")
        self.assertEqual(sorted(done.stderr.splitlines()), ["[rank 1] warning: slow", "plain"])
        self.assertEqual(sorted(path.name for path in logs.iterdir()),
                         [f"rank-000{rank}.log" for rank in range(4)])
        self.assertEqual(sorted((logs / "rank-0001.log").read_text().splitlines()),
                         ["plain", "result", "warning: slow"])
        done = launch("3:exit=1", flags=["--log-dir", logs], code=1)
        self.assertIn(f"all it wrote: {logs}/rank-0003.log", last_line(done))

    def test_rank_zero_sees_a_terminal_where_there_is_one(self):
        ours, theirs = pty.openpty()
        with subprocess.Popen([e2e.Options.cadre, "launch", "--nproc-per-node", "2", "--program",
                               "/usr/bin/env", "sh", "-c", "test -t 2 && echo $RANK >&2; true"],
                              stdout=subprocess.DEVNULL, stderr=theirs) as process:
            os.close(theirs)
            shown = b""
            with contextlib.suppress(OSError):
                while piece := os.read(ours, 4096):
                    shown += piece
        os.close(ours)
        self.assertTrue(shown.startswith(b"0\r\n"), shown)

    def test_ranks_know_who_they_are(self):
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
                 "TORCHELASTIC_RESTART_COUNT", "OMP_NUM_THREADS"]
        done = launch(*(f"0:environ={name}" for name in names), ranks=3)
        cores = len(os.sched_getaffinity(0))
        self.assertEqual(done.stdout.split(),
                         ["RANK=0", "WORLD_SIZE=3", "LOCAL_RANK=0", "LOCAL_WORLD_SIZE=3",
                          "GROUP_RANK=0", "TORCHELASTIC_RESTART_COUNT=0",
                          f"OMP_NUM_THREADS={max(cores // 3, 1)}"])

    def test_the_users_threads_are_left_alone(self):
        os.environ["OMP_NUM_THREADS"] = "5"
        try:
            self.assertEqual(launch("0:environ=OMP_NUM_THREADS").stdout, "OMP_NUM_THREADS=5\n")
        finally:
            del os.environ["OMP_NUM_THREADS"]

    def test_the_token_is_on_no_command_line(self):
        with launching(*self.files([0]), "*:hold", ranks=1) as process:
            (pid,) = self.pids(process, [0])
            environ = pathlib.Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            (token,) = [v.split(b"=")[1] for v in environ if v.startswith(b"CADRE_JOB_TOKEN=")]
            self.assertEqual(len(token), 32)
            for one in (pid, process.pid):
                self.assertNotIn(token, pathlib.Path(f"/proc/{one}/cmdline").read_bytes())


class Signals(Case):
    def test_ctrl_c_reaches_each_rank_once(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            for path in self.folder.glob("pid*"):
                path.unlink()
            with launching(*self.files(), "*:wait") as process:
                pids = self.pids(process, range(4))
                process.send_signal(number)
                self.assert_ended(process, pids, 0)
                self.assertEqual(process.output().count(f"got signal {number:d}"), 4)

    def test_where_ctrl_c_is_ignored_a_signal_still_counts(self):
        """As in a shell script's `cadre launch ... &`."""
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with launching(*self.files(), "*:wait") as process:
                pids = self.pids(process, range(4))
                process.send_signal(signal.SIGINT)
                self.assert_ended(process, pids, 0)
        finally:
            signal.signal(signal.SIGINT, before)

    def test_a_second_one_kills(self):
        with launching(*self.files(), "*:hold") as process:
            pids = self.pids(process, range(4))
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGTERM)
            self.assertIn(process.wait(e2e.TIMEOUT), (130, 137, 143), process.output())
            self.assertEqual([pid for pid in pids if alive(pid)], [])

    def test_ranks_do_not_survive_their_launcher(self):
        with launching(*self.files(), "*:wait") as process:
            pids = self.pids(process, range(4))
            process.send_signal(signal.SIGKILL)
            process.wait()
            deadline = time.monotonic() + e2e.TIMEOUT
            while any(alive(pid) for pid in pids):
                self.assertLess(time.monotonic(), deadline)
                time.sleep(0.02)


class Hangs(Case):
    BEGUN = ("*:step=15", "*:step=16", "*:step=17", "*:gather=begun", "2:activity=forward,3",
             "0:begin=tp,all_reduce,layer 3 mlp,8", "1:begin=tp,all_reduce,layer 3 mlp,8",
             "3:begin=tp,all_reduce,layer 3 mlp,8")
    WAIT = "ranks 0, 1, 3 wait for it in all_reduce 'layer 3 mlp' of group tp since "

    def test_a_stopped_rank_is_named_with_what_it_holds_up(self):
        with launching(*self.BEGUN, *self.files(), "*:hold") as process:
            pids = self.pids(process, range(4))
            os.kill(pids[2], signal.SIGSTOP)
            self.wait_for(process, self.WAIT)
            (line,) = [l for l in process.output().splitlines() if "hangs" in l]
            self.assertTrue(line.startswith(
                "warning: rank 2 hangs (stopped by a signal) in forward of layer 3 at step 17; "
                + self.WAIT), line)

    def test_one_that_never_comes_is_named(self):
        with launching(*self.BEGUN, *self.files(), "*:hold") as process:
            self.wait_for(process, "rank 2 hangs in forward of layer 3 at step 17; " + self.WAIT)

    def test_hang_timeout_ends_the_job_and_counts_as_a_failure(self):
        done = launch(*self.BEGUN, "*:hold", flags=["--hang-timeout", 2.5], code=1)
        self.assertEqual(last_line(done), "error: rank 2 hung for longer than --hang-timeout")
        self.assertIn("[rank 2] rank 2 hangs in forward of layer 3", done.stderr)


class Restarts(Case):
    def test_all_ranks_start_again(self):
        done = launch("0:environ=TORCHELASTIC_RESTART_COUNT", "*:gather=a", "1@0:exit=5", "2@1:crash",
                      "*@0:hold", "*@1:hold", flags=["--max-restarts", 2])
        self.assertEqual(done.stdout.split(),
                         [f"TORCHELASTIC_RESTART_COUNT={start}" for start in range(3)])
        self.assertEqual(done.stderr.splitlines(), [
            "warning: rank 1 exited with code 5; all ranks start again (restart 1)",
            "warning: rank 2 was killed by signal 6 (SIGABRT); all ranks start again (restart 2)"])

    def test_not_more_often_than_allowed(self):
        done = launch("0:out=start", "*:gather=a", "1:exit=5", "*:hold", flags=["--max-restarts", 2], code=5)
        self.assertEqual(done.stdout, "start\n" * 3)
        self.assertEqual(last_line(done), "error: rank 1 exited with code 5")


class Nodes(Case):
    @contextlib.contextmanager
    def nodes(self, *actions, flags=(), ranks=(2, 2), timeout=60):
        os.environ["CADRE_JOB_TOKEN"] = "secret"
        try:
            with free_port() as port, contextlib.ExitStack() as stack:
                self.port = port
                yield [stack.enter_context(launching(
                    *actions, ranks=count, flags=["--nnodes", len(ranks), "--node-rank", node,
                                                  "--rdzv-endpoint", f"127.0.0.1:{port}",
                                                  "--rdzv-timeout", timeout, *flags]))
                       for node, count in enumerate(ranks) if count]
        finally:
            del os.environ["CADRE_JOB_TOKEN"]

    def test_two_make_one_world(self):
        with self.nodes("*:gather=a", "*:say=warning: here", ranks=(1, 3)) as nodes:
            for process in nodes:
                self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())
            self.assertEqual(sorted(nodes[1].output().splitlines()),
                             [f"[rank {rank}] warning: here" for rank in (1, 2, 3)])

    def test_bytes_of_strangers_harm_nothing(self):
        hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        strange = [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01" + os.urandom(500),
                   os.urandom(4096), hello, hello + os.urandom(4096), hello + b"\xff\xff\xff" + bytes(1000),
                   hello + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])]
        with self.nodes(*self.files(range(2)), "*:wait", ranks=(1, 1)) as nodes, contextlib.ExitStack() as kept:
            def meet():
                for data in strange:
                    with contextlib.suppress(OSError):
                        connection = socket.create_connection(("127.0.0.1", self.port), 1)
                        kept.enter_context(connection).sendall(data)
                return all((self.folder / f"pid{rank}").exists() for rank in range(2))

            e2e.wait_until(meet, nodes[0], "the ranks run")
            meet()
            nodes[1].send_signal(signal.SIGINT)
            for process in nodes:
                self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())
                self.assertTrue(all("warning: got signal" in line for line in process.output().splitlines()),
                                process.output())

    def test_a_death_on_one_ends_the_other(self):
        with self.nodes(*self.files(), "*:gather=a", "3:say=error: no bread", "3:exit=9",
                        "*:hold") as nodes:
            for process in nodes:
                self.assertEqual(process.wait(e2e.TIMEOUT), 9, process.output())
                self.assertEqual(process.output(), "[rank 3] error: no bread\n"
                                                   "error: rank 3 on node 1 exited with code 9\n")

    def test_they_restart_together(self):
        with self.nodes("*:gather=a", "3@0:exit=9", "*@0:hold", "*:gather=b",
                        flags=["--max-restarts", 1]) as nodes:
            for process in nodes:
                self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())
                self.assertIn("all ranks start again (restart 1)", process.output())

    def test_ctrl_c_on_one_ends_both(self):
        with self.nodes(*self.files(), "*:wait") as nodes:
            pids = self.pids(nodes[0], range(4))
            nodes[1].send_signal(signal.SIGINT)
            for process in nodes:
                self.assert_ended(process, pids if process is nodes[1] else [], 0)

    def test_a_launcher_that_is_gone_ends_the_others(self):
        for gone in (0, 1):
            for path in self.folder.glob("pid*"):
                path.unlink()
            with self.nodes(*self.files(), "*:wait") as nodes:
                self.pids(nodes[0], range(4))
                nodes[gone].send_signal(signal.SIGKILL)
                left = nodes[1 - gone]
                self.assertEqual(left.wait(e2e.TIMEOUT), 1, left.output())
                host = ", which hosts the rendezvous," if gone == 0 else ""
                self.assertEqual(left.output().splitlines()[-1],
                                 f"error: the launcher of node {gone}{host} is gone")

    def test_where_the_rendezvous_is_slow_a_death_still_ends_the_nodes_ranks_and_all_restart(self):
        with self.nodes(*self.files(), "*:gather=a", "*@0:hold", flags=["--max-restarts", 1]) as nodes:
            pids = self.pids(nodes[0], range(4))
            stop(nodes[0])
            os.kill(pids[3], signal.SIGKILL)
            e2e.wait_until(lambda: not alive(pids[2]), nodes[1], "its node's ranks end")
            nodes[0].send_signal(signal.SIGCONT)
            for process in nodes:
                self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())
                self.assertEqual(process.output(), "warning: rank 3 on node 1 was killed by signal 9 "
                                 "(SIGKILL); all ranks start again (restart 1)\n")

    def test_where_the_rendezvous_is_gone_a_nodes_own_death_is_named(self):
        with self.nodes(*self.files(), "*:gather=a", "*:hold", flags=["--max-restarts", 1]) as nodes:
            pids = self.pids(nodes[0], range(4))
            stop(nodes[0])
            os.kill(pids[3], signal.SIGKILL)
            e2e.wait_until(lambda: not alive(pids[2]), nodes[1], "its node's ranks end")
            nodes[0].send_signal(signal.SIGKILL)
            self.assert_ended(nodes[1], pids[2:], 128 + signal.SIGKILL)
            self.assertEqual(nodes[1].output(),
                             "error: rank 3 on node 1 was killed by signal 9 (SIGKILL)\n")

    def test_a_second_ctrl_c_does_not_wait_for_the_rendezvous(self):
        with self.nodes(*self.files(), "*:gather=a", "*:hold") as nodes:
            pids = self.pids(nodes[0], range(4))
            stop(nodes[0])
            nodes[1].send_signal(signal.SIGINT)
            e2e.wait_until(lambda: not pending(nodes[1].pid), nodes[1], "it is taken")
            # The same one again right away is no second.
            nodes[1].send_signal(signal.SIGTERM)
            self.assert_ended(nodes[1], pids[2:], 128 + signal.SIGTERM)
            nodes[0].send_signal(signal.SIGCONT)
            nodes[0].wait(e2e.TIMEOUT)

    def test_a_rank_that_those_of_another_node_wait_for_is_named(self):
        with self.nodes("*:step=15", "*:step=16", "*:step=17", "*:gather=begun", "2:activity=backward,3",
                        "0:begin=dp,all_reduce,bucket 1,8", "1:begin=dp,all_reduce,bucket 1,8",
                        "*:hold", ranks=(2, 1)) as nodes:
            self.wait_for(nodes[0], "warning: ranks 0, 1 wait in all_reduce 'bucket 1' of group dp")
            self.wait_for(nodes[1], "warning: rank 2 hangs in backward of layer 3 at step 17; ranks 0, "
                                    "1 wait in all_reduce 'bucket 1' of group dp since ")

    def test_a_node_that_comes_back_restarts_with_the_others(self):
        with self.nodes(*self.files(), "*:gather=a", "*@0:wait", flags=["--max-restarts", 1]) as nodes:
            self.pids(nodes[0], range(4))
            nodes[1].send_signal(signal.SIGKILL)
            self.wait_for(nodes[0], "the launcher of node 1 is gone; all ranks start again (restart 1)")
            with e2e.running(*nodes[1].args[1:]) as back:
                for process in (nodes[0], back):
                    self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())

    def test_a_time_out_names_who_is_missing(self):
        with self.nodes("*:hold", ranks=(2, 0, 0), timeout=0.5) as (process,):
            self.assertEqual(process.wait(e2e.TIMEOUT), 1)
            self.assertEqual(process.output(),
                             f"error: rendezvous 127.0.0.1:{self.port}: launchers: after 0.5 s "
                             "nodes 1, 2 of 3 did not come\n")

    def test_nobody_answers(self):
        with self.nodes("*:hold", ranks=(0, 2), timeout=0.5) as (process,):
            self.assertEqual(process.wait(e2e.TIMEOUT), 1)
            self.assertEqual(process.output(), "error: rendezvous: nobody answers at "
                                               f"127.0.0.1:{self.port} after 0.5 s\n")

    def test_a_port_in_use(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            os.environ["CADRE_JOB_TOKEN"] = "secret"
            try:
                endpoint = f"127.0.0.1:{taken.getsockname()[1]}"
                line = e2e.refused("launch", "--nproc-per-node", 1, "--nnodes", 2, "--rdzv-endpoint",
                                   endpoint, "--program", program(), "0:exit=0", code=1)
            finally:
                del os.environ["CADRE_JOB_TOKEN"]
            self.assertEqual(line, f"rendezvous {endpoint}: the port is in use; choose another one")

    def test_options_that_cannot_be(self):
        for flags, text in [
                ((), "--nproc-per-node: how many ranks"),
                (("--nproc-per-node", "two"), "--nproc-per-node two: a number"),
                (("--nproc-per-node", 0), "--nproc-per-node 0: 1 to 65536"),
                (("--nproc-per-node", 2, "--nnodes", 2), "--rdzv-endpoint HOST:PORT is needed"),
                (("--nproc-per-node", 2, "--nnodes", "1:2"), "--rdzv-endpoint HOST:PORT is needed"),
                (("--nproc-per-node", 2, "--nnodes", "2:1"), "--nnodes 2:1: MIN is more than MAX"),
                (("--nproc-per-node", 2, "--nnodes", 0), "--nnodes 0: N or MIN:MAX, each 1 to 65536"),
                (("--nproc-per-node", 2, "--nnodes", "1:"), "--nnodes 1:: N or MIN:MAX"),
                (("--nproc-per-node", 2, "--nnodes", 2**31), "--nnodes 2147483648: N or MIN:MAX"),
                (("--nproc-per-node", 2, "--nnodes", 65536), "a job has at most 65536 ranks"),
                (("--nproc-per-node", 2, "--nnodes", "1:2", "--rdzv-last-call", -1),
                 "--rdzv-last-call -1: 0 to --rdzv-timeout, 60 seconds"),
                (("--nproc-per-node", 2, "--nnodes", "1:2", "--rdzv-last-call", 61),
                 "--rdzv-last-call 61: 0 to --rdzv-timeout, 60 seconds"),
                (("--nproc-per-node", 2, "--nnodes", "2:2", "--rdzv-last-call", 5),
                 "--rdzv-last-call 5: --nnodes 2 waits for all of them; it needs MIN:MAX"),
                (("--nproc-per-node", 2, "--rdzv-last-call", 5), "--rdzv-last-call 5: --nnodes 1 waits"),
                (("--nproc-per-node", 2, "--nnodes", 2, "--rdzv-endpoint", "a:1"), "CADRE_JOB_TOKEN"),
                (("--nproc-per-node", 2, "--node-rank", 1), "--node-rank 1: 0 to 0"),
                (("--nproc-per-node", 2, "--max-restarts", -1), "--max-restarts -1"),
                (("--nproc-per-node", 2, "--hang-timeout", -1), "--hang-timeout -1"),
                (("--nproc-per-node", 2, "--rdzv-endpoint", "a:b"), "a port is 1 to 65535"),
                (("--nproc-per-node", 2, "--bogus"), "--bogus: no such option")]:
            with self.subTest(flags=flags):
                self.assertIn(text, e2e.refused("launch", *flags, "train", code=2))
        self.assertIn("a verb is needed", e2e.refused("launch", "--nproc-per-node", 2, code=2))
        self.assertIn("plan is one process", e2e.refused("launch", "--nproc-per-node", 2, "plan", code=2))
        self.assertIn("trian: no verb of cadre; did you mean train?",
                      e2e.refused("launch", "--nproc-per-node", 2, "trian", code=2))
        self.assertIn("--log-dir: an option of launch, it stands before train",
                      e2e.refused("launch", "--nproc-per-node", 2, "train", "--log-dir", "logs", code=2))
        # As torchrun's users write it.
        self.assertIn("--zork", e2e.refused("launch", "--nproc-per-node", 2, "--", "train", "-c", e2e.CONFIG,
                                            "--zork", code=2))
        self.assertIn("Train a model", e2e.cadre("launch", "--nproc-per-node", 2, "train", "--help").stdout)


class Elastic(Case):
    """--nnodes MIN:MAX."""

    def setUp(self):
        super().setUp()
        os.environ["CADRE_JOB_TOKEN"] = "secret"
        self.addCleanup(os.environ.pop, "CADRE_JOB_TOKEN")
        self.port = self.enterContext(free_port())

    def node(self, number, *actions, nodes="1:3", last_call=0.5, flags=()):
        return self.enterContext(launching(*actions, ranks=1, flags=[
            "--nnodes", nodes, "--node-rank", number, "--rdzv-endpoint", f"127.0.0.1:{self.port}",
            "--rdzv-last-call", last_call, *flags]))

    HERE = ("*:gather=a", "0:out=all here")

    def wait_for_nodes(self, host, numbers):
        """Until all ranks of these run; how many starts it takes depends on who is slow."""
        def there():
            latest = host.output().split("\nstart ")[-1]
            return f" ranks on {numbers}\n" in latest and "all here" in latest
        e2e.wait_until(there, host, numbers)

    def assert_done(self, *nodes):
        for process in nodes:
            self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())

    def test_the_others_go_on_and_take_in_the_one_that_comes_back(self):
        actions = ("0:environ=WORLD_SIZE", "0:environ=TORCHELASTIC_RESTART_COUNT", *self.HERE, "*:wait")
        nodes = [self.node(number, *actions, flags=["--max-restarts", 1]) for number in range(3)]
        self.wait_for_nodes(nodes[0], "nodes 0-2")
        nodes[1].send_signal(signal.SIGKILL)
        self.wait_for_nodes(nodes[0], "nodes 0, 2")
        self.assertIn("warning: the launcher of node 1 is gone; all ranks start again (restart 1)",
                      nodes[0].output())
        back = self.node(1, *actions)
        self.wait_for_nodes(nodes[0], "nodes 0-2")
        self.assertRegex(back.output().splitlines()[0],
                         "start [0-9]+: 2 ranks on nodes 0, 2; node 1 waits for the next one")
        self.assertIn("node 1 joined: all ranks save and start again", nodes[0].output())
        self.wait_for(nodes[0], "WORLD_SIZE=2\nTORCHELASTIC_RESTART_COUNT=1")
        nodes[2].send_signal(signal.SIGINT)
        self.assert_done(nodes[0], nodes[2], back)

    def test_an_older_jobs_logs_are_cut_and_this_ones_are_not(self):
        logs, actions = self.folder / "logs", (*self.HERE, "*:say=warning: here", "*:wait")
        logs.mkdir()
        for rank in range(2):
            (logs / f"rank-000{rank}.log").write_text("an older job's\n")
        host = self.node(0, *actions, nodes="1:2", flags=["--log-dir", logs])
        self.wait_for_nodes(host, "node 0")
        late = self.node(1, *actions, nodes="1:2", flags=["--log-dir", logs])
        self.wait_for_nodes(host, "nodes 0, 1")
        self.wait_for(late, "[rank 1] warning: here")
        host.send_signal(signal.SIGINT)
        self.assert_done(host, late)
        own, its = ((logs / f"rank-000{rank}.log").read_text() for rank in range(2))
        self.assertNotIn("older", own + its)
        self.assertEqual((own.count("all here"), its.count("warning: here")), (2, 1))

    def test_one_that_gets_sigterm_leaves_and_the_others_go_on(self):
        actions = (*self.HERE, "0:environ=TORCHELASTIC_RESTART_COUNT", "*:wait")
        # No last call: it would not end before the test does.
        nodes = [self.node(number, *actions, nodes="2:3", last_call=1000, flags=["--rdzv-timeout", 1000])
                 for number in range(3)]
        self.wait_for_nodes(nodes[0], "nodes 0-2")
        nodes[1].send_signal(signal.SIGTERM)
        self.assert_done(nodes[1])
        self.assertEqual(nodes[1].output().splitlines()[-1], "node 1 left the job, which goes on")
        self.wait_for_nodes(nodes[0], "nodes 0, 2")
        self.assertIn("node 1 leaves: all ranks save and start again", nodes[0].output())
        self.wait_for(nodes[0], "nodes 0, 2\nall here\nTORCHELASTIC_RESTART_COUNT=0")
        nodes[2].send_signal(signal.SIGTERM)  # one would be too few: the job's end
        self.assert_done(nodes[0], nodes[2])

    def test_where_the_rendezvous_is_slow_one_that_gets_sigterm_saves_all_the_same(self):
        # A rank that has its number is past what only the rendezvous can answer.
        nodes = [self.node(number, "*:gather=a", *(f"{rank}:file={self.folder}/pid{rank}" for rank in range(2)),
                           "*:wait", nodes="1:2") for number in range(2)]
        self.wait_for(nodes[0], "2 ranks on nodes 0, 1")
        pids = self.pids(nodes[0], range(2))
        stop(nodes[0])
        nodes[1].send_signal(signal.SIGTERM)
        e2e.wait_until(lambda: not alive(pids[1]), nodes[1], "its rank ends")
        self.wait_for(nodes[1], "[rank 1] warning: got signal 15")
        self.assertIsNone(nodes[1].poll(), nodes[1].output())
        nodes[0].send_signal(signal.SIGKILL)
        nodes[1].wait(e2e.TIMEOUT)

    def test_the_loss_of_the_rendezvous_host_ends_the_job(self):
        nodes = [self.node(number, *self.HERE, "*:wait", flags=["--max-restarts", 9]) for number in range(3)]
        self.wait_for_nodes(nodes[0], "nodes 0-2")
        nodes[0].send_signal(signal.SIGKILL)
        for process in nodes[1:]:
            self.assertEqual(process.wait(e2e.TIMEOUT), 1, process.output())
            self.assertEqual(process.output().splitlines()[-1],
                             "error: the launcher of node 0, which hosts the rendezvous, is gone")

    def test_a_time_out_says_how_many_are_needed(self):
        alone = self.node(0, "*:wait", nodes="2:3", flags=["--rdzv-timeout", 0.5])
        self.assertEqual(alone.wait(e2e.TIMEOUT), 1, alone.output())
        self.assertEqual(alone.output(), f"error: rendezvous 127.0.0.1:{self.port}: launchers: after "
                         "0.5 s nodes 1, 2 of 3 did not come; at least 2 are needed\n")

    def test_two_with_one_number(self):
        first, _ = (self.node(number, *self.HERE, "*:wait") for number in range(2))
        self.wait_for_nodes(first, "nodes 0, 1")
        second = self.node(1, "*:wait", flags=["--rdzv-timeout", 0.5])
        self.assertEqual(second.wait(e2e.TIMEOUT), 1, second.output())
        self.assertIn("node 1: two launchers say that they are node 1", second.output())

    def test_one_in_the_place_of_another_waits_for_its_end(self):
        actions = (*self.HERE, "*:wait")
        nodes = [self.node(number, *actions, flags=["--max-restarts", 1]) for number in range(2)]
        self.wait_for_nodes(nodes[0], "nodes 0, 1")
        instead = self.node(1, *actions)
        self.wait_for(instead, "warning: another launcher is node 1; waiting for its end")
        nodes[1].send_signal(signal.SIGKILL)
        e2e.wait_until(lambda: "ranks on" in instead.output(), instead, "it is let in")
        self.wait_for_nodes(nodes[0], "nodes 0, 1")
        nodes[0].send_signal(signal.SIGINT)
        self.assert_done(nodes[0], instead)

    def test_ctrl_c_ends_all(self):
        nodes = [self.node(number, *self.HERE, "*:wait", nodes="1:2") for number in range(2)]
        self.wait_for_nodes(nodes[0], "nodes 0, 1")
        nodes[1].send_signal(signal.SIGINT)
        self.assert_done(*nodes)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
