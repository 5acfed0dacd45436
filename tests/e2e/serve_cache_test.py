#!/usr/bin/env python3
"""What `cadre serve` does with its KV cache, over HTTP: budgets, tiers, keys. Standard library only.

    python3 tests/e2e/serve_cache_test.py [--cadre build/release/cadre] [unittest flags, test names]
"""

import contextlib
import http.client
import json
import pathlib
import re
import tempfile
import unittest

import e2e
import serve_test
from e2e import Options

BLOCK = 16


def setUpModule():
    serve_test.setUpModule()
    memory = 1 << 18
    with serve_test.serving("--dtype", "bf16", *settings(kv_cache_memory_bytes=memory)) as server:
        blocks = int(re.search(rf"(\d+) KV blocks of {BLOCK} tokens", server.output()).group(1))
    Options.block_bytes = memory // blocks


def settings(**fields):
    return [part for name, value in fields.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]


def body(tokens, start=5, **fields):
    """A greedy completion of a prompt of so many tokens, others for each start."""
    prompt = [5 + (start * 31 + i * i + i // 7) % 400 for i in range(tokens)]
    return {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, "logprobs": 1, **fields}


def logprobs(reply):
    return reply["choices"][0]["logprobs"]["token_logprobs"]


class Budgets(unittest.TestCase):
    def test_a_budget_of_the_deployment_and_of_requests(self):
        with serve_test.serving() as server:
            full = logprobs(server.post(body(600))[1])
            self.assertEqual(server.post(body(600, kv_budget=64))[0], 400)
        with serve_test.serving(*settings(kv_eviction__policy="cake", kv_eviction__budget=64,
                                          kv_eviction__min_budget=40, kv_eviction__max_budget=512)) as server:  # fmt: skip
            status, reply, _ = server.post(body(600))
            self.assertEqual(status, 200, reply)
            own = logprobs(reply)
            self.assertEqual((len(own), own[0]), (24, full[0]), "the prompt is read whole")
            self.assertNotEqual(own, full)
            self.assertEqual(logprobs(server.post(body(600, kv_budget=64))[1]), own)
            for policy in ("snapkv", "pyramidkv", "h2o", "tova", "streaming_llm"):
                status, reply, _ = server.post(body(600, kv_budget=100, kv_eviction=policy))
                self.assertEqual(status, 200, reply)
                self.assertEqual(logprobs(reply)[0], full[0], policy)
                self.assertNotEqual(logprobs(reply), own, policy)
            # Where nothing can leave nothing is refused.
            status, reply, _ = server.post(body(8, n=2))
            self.assertEqual((status, len(reply["choices"])), (200, 2), reply)
            for fields, said in (({"kv_budget": 39}, "at least 40"), ({"kv_budget": 513}, "at most 512"),
                                 ({"kv_eviction": "lru"}, "lru"), ({"n": 2}, "n: ")):  # fmt: skip
                status, reply, _ = server.post(body(600, **fields))
                self.assertEqual(status, 400, fields)
                self.assertIn(said, reply["error"]["message"])
                self.assertEqual(reply["error"]["param"], [*fields][0])
            server.wait_until_the_cache_is_empty()

    def test_budgets_that_do_not_fit_the_deployment(self):
        for fields, said in (({"kv_eviction__budget": 64}, "kv_eviction.policy names none"),
                             ({"kv_eviction__policy": "lru"}, "lru"),
                             ({"kv_eviction__policy": "cake", "kv_eviction__budget": 20}, "kv_eviction.budget")):  # fmt: skip
            done = e2e.cadre("serve", "--model", Options.model, "--port", "0", *settings(**fields), code=None)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(said, done.stderr)


class Tiers(unittest.TestCase):
    def test_what_left_the_cache_comes_back(self):
        with serve_test.serving("--dtype", "bf16") as server:
            expected = logprobs(server.post(body(400))[1])
        with tempfile.TemporaryDirectory() as folder:
            for tiers in ({"kv_host_cache_bytes": 64 << 20},
                          {"kv_disk_cache_bytes": 64 << 20, "kv_disk_cache_path": folder}):  # fmt: skip
                small = settings(kv_cache_memory_bytes=Options.block_bytes * 42, **tiers)
                with self.subTest(tiers), serve_test.serving("--dtype", "bf16", *small) as server:
                    status, reply, _ = server.post(body(400))
                    self.assertEqual(status, 200, reply)
                    self.assertEqual(logprobs(reply), expected)
                    for _ in range(3):
                        for start in (7, 9):
                            self.assertEqual(server.post(body(500, start))[0], 200)
                        reply = server.post(body(400))[1]
                        self.assertEqual(logprobs(reply), expected)
                        cached = reply["usage"]["prompt_tokens_details"]["cached_tokens"]
                        self.assertGreaterEqual(cached, 384)
            self.assertEqual(list(pathlib.Path(folder).iterdir()), [], "the file has no name")


class Keys(unittest.TestCase):
    def test_prefixes_can_be_each_keys_own(self):
        def cached(server, key):
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=e2e.TIMEOUT)) as c:
                c.request("POST", "/v1/completions", json.dumps(body(100)), {"Authorization": f"Bearer {key}"})
                return json.loads(c.getresponse().read())["usage"]["prompt_tokens_details"]["cached_tokens"]

        keys = ("--api-key", "first-key", "--api-key", "second-key")
        for by_key in ("false", "true"):
            with serve_test.serving(*keys, *settings(prefix_cache_by_key=by_key)) as server:
                self.assertEqual(cached(server, "first-key"), 0)
                self.assertGreater(cached(server, "first-key"), 0)
                self.assertEqual(cached(server, "second-key") > 0, by_key == "false")


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
