#!/usr/bin/env python3
"""`cadre launch ... serve`: one server over several processes. It answers as one process does, ends when a
rank is lost, and drains.

    python3 tests/e2e/serve_ranks_test.py [--cadre build/release/cadre] [unittest flags, test names]
"""

import contextlib
import http.client
import json
import os
import re
import signal
import time
import unittest

import e2e
from launch_test import alive
from ranks_test import children

CONTEXT = 512
TP = ("--set", "parallel.tensor_parallel_size=2")
F32 = ("--dtype", "f32")
PROMPTS = ["the sea gave", "my brother remembered the word. every river", [5, 6, 7], "a king took a stone"]


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=60", "eval.interval=0")
    e2e.Options.model = shop.model(run, "model")


@contextlib.contextmanager
def serving(ranks, *flags):
    """A server of so many ranks, ready; `port` is set on the launcher's process."""
    command = ["serve", "--model", e2e.Options.model, "--port", 0, *flags]
    if ranks > 1:
        command = ["launch", "--nproc-per-node", ranks, *command]
    with e2e.running(*command) as process:
        def listening():
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.output())
            process.port = int(found.group(1)) if found else 0
            return found and e2e.status(process.port, "/ready") == 200
        e2e.wait_until(listening, process, "the server is ready")
        yield process


def answers(process):
    """(text, logprobs of all tokens) of each prompt, greedy."""
    found = []
    for prompt in PROMPTS:
        status, body = e2e.post(process.port, "/v1/completions", {
            "prompt": prompt, "max_tokens": 40, "temperature": 0, "logprobs": 1, "ignore_eos": True})
        if status != 200:
            raise AssertionError(body)
        choice = body["choices"][0]
        found.append((choice["text"], choice["logprobs"]["token_logprobs"]))
    return found


class Ranks(unittest.TestCase):
    def test_two_ranks_answer_as_one(self):
        with serving(1, *F32) as one:
            expected = answers(one)
        with serving(2, *F32, *TP) as two:
            got = answers(two)
            self.assertEqual(answers(two), got)  # now from the prefix cache
        for (text, logprobs), (wanted, reference) in zip(got, expected, strict=True):
            self.assertEqual(text, wanted)
            for a, b in zip(logprobs, reference, strict=True):
                self.assertLess(abs(a - b), 1e-4)

    def test_data_parallel_ranks_answer_as_one(self):
        body = {"prompt": [p for p in PROMPTS if isinstance(p, str)], "max_tokens": 20, "temperature": 0,
                "logprobs": 1, "ignore_eos": True}
        for flags in (F32, ("--weights", "int4", "--set", "kv_cache_dtype=int8")):
            found = []
            for ranks in (1, 2):
                with serving(ranks, *flags) as process:
                    # Together they are on both ranks; alone one rank has nothing to do.
                    status, answer = e2e.post(process.port, "/v1/completions", body)
                    self.assertEqual(status, 200)
                    found.append([(c["text"], c["logprobs"]["token_logprobs"]) for c in answer["choices"]]
                                 + answers(process))
            self.assertEqual(found[1], found[0])

    def test_sigterm_drains_all_ranks(self):
        with serving(2, *TP, "--set", f"drain_timeout_s={e2e.TIMEOUT}") as process:
            ranks = children(process.pid)
            self.assertEqual(len(ranks), 2)
            connection, response = begin(process.port)
            process.send_signal(signal.SIGTERM)
            text = response.read().decode()
            connection.close()
            self.assertIn("[DONE]", text)
            self.assertEqual(len(re.findall(r'"finish_reason": ?"length"', text)), 1)
            self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())
            self.assertEqual([rank for rank in ranks if alive(rank)], [])

    def test_sigterm_ends_ranks_that_still_load(self):
        with e2e.leased(e2e.Options.model / "tokenizer.json"), e2e.running(
                "launch", "--nproc-per-node", 2, "serve", "--model", e2e.Options.model, "--port", 0, *TP) as process:
            e2e.wait_until(lambda: "listening on" in process.output(), process, "rank 0 listens")
            ranks = children(process.pid)
            e2e.wait_until(lambda: all(map(catches_sigterm, ranks)), process, "all ranks are past their start")
            process.send_signal(signal.SIGTERM)
            self.assertEqual(process.wait(e2e.TIMEOUT), 0, process.output())
            self.assertEqual([rank for rank in ranks if alive(rank)], [])

    def test_an_idle_server_is_no_hang(self):
        with serving(2, *TP, "--set", "comm.timeout_seconds=5") as process:
            first = answers(process)
            time.sleep(5.5)  # nobody asks for longer than an operation may take
            self.assertEqual(answers(process), first)
            self.assertNotIn("hangs", process.output())

    def test_a_killed_follower_ends_the_server_and_is_named(self):
        for busy in (False, True):
            with self.subTest(busy=busy), serving(2, *TP) as process:
                ranks = children(process.pid)
                connection, response = begin(process.port) if busy else (None, None)
                follower = next(pid for pid in ranks if rank_of(pid) == 1)
                os.kill(follower, signal.SIGKILL)
                self.assertEqual(process.wait(e2e.TIMEOUT), 128 + signal.SIGKILL, process.output())
                self.assertIn("rank 1 was killed by signal 9 (SIGKILL)", process.output())
                self.assertEqual([rank for rank in ranks if alive(rank)], [])
                if busy:
                    with contextlib.suppress(OSError, http.client.HTTPException):
                        response.read()
                    connection.close()

    def test_what_cannot_run_is_refused_before_a_rank_starts(self):
        def refused(*flags, ranks=2):
            return e2e.refused("launch", "--nproc-per-node", ranks, "serve", "--model", e2e.Options.model,
                               *flags, code=2)
        self.assertIn("does not divide a world of 3", refused(*TP, ranks=3))
        self.assertIn("num_attention_heads 4 is less than tensor_parallel_size 8",
                      refused("--set", "parallel.tensor_parallel_size=8", ranks=8))
        self.assertIn("parallel.zero_stage 3", refused(*TP, "--set", "parallel.zero_stage=3"))


def begin(port):
    """A long answer of which the first piece has come: (connection, response)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=e2e.TIMEOUT)
    body = {"prompt": [5, 6], "max_tokens": CONTEXT - 2, "ignore_eos": True, "stream": True, "seed": 1}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    if not response.readline().startswith(b"data:"):
        raise AssertionError(f"no stream: {response.status}")
    return connection, response


def catches_sigterm(pid):
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        caught = re.search(r"SigCgt:\s+([0-9a-f]+)", file.read()).group(1)
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


def rank_of(pid):
    with open(f"/proc/{pid}/environ", "rb") as file:
        values = dict(entry.split(b"=", 1) for entry in file.read().split(b"\0") if b"=" in entry)
    return int(values[b"RANK"])


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
