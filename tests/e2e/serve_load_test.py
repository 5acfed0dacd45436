#!/usr/bin/env python3
"""bench/serve_load against the real `cadre serve` on a tiny model. Standard library only.

    python3 tests/e2e/serve_load_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

import json
import subprocess
import unittest

import e2e
from e2e import Options

CONTEXT = 512


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=5", "eval.interval=0")
    Options.folder, Options.model = shop.folder, shop.model(run, "model")


def load(url, *flags, code=0):
    """The report, where the program ends with `code`."""
    done = subprocess.run([Options.cadre.parent / "bench_serve_load", "--url", url, "--json", *map(str, flags)],
                          capture_output=True, text=True, timeout=e2e.TIMEOUT, check=False)  # fmt: skip
    if done.returncode != code:
        raise AssertionError(f"exit code {done.returncode}, {code} expected\n{done.stdout}{done.stderr[-3000:]}")
    return json.loads(done.stdout) if code != 2 else done.stderr


def azure(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\r\n")
        for at, prompt, output in rows:
            file.write(f"2023-11-16 18:15:{at:010.7f},{prompt},{output}\r\n")
    return path


def mooncake(path, rows):
    with open(path, "w", encoding="utf-8") as file:
        for at, prompt, output, blocks in rows:
            file.write(json.dumps({"timestamp": at, "input_length": prompt, "output_length": output,
                                   "hash_ids": blocks}) + "\n")  # fmt: skip
    return path


class ServeLoad(unittest.TestCase):
    def check(self, report, requests):
        self.assertEqual(report["errors"], {})
        self.assertEqual((report["requests"], report["whole"]), (requests, requests))
        for name in ("ttft_ms", "itl_ms", "e2e_ms"):
            p = report[name]
            self.assertTrue(0 <= p["p50"] <= p["p90"] <= p["p99"], (name, p))
        self.assertLessEqual(report["ttft_ms"]["p50"], report["e2e_ms"]["p50"])

    def test_poisson_arrivals_under_two_keys(self):
        with e2e.serving(Options.model, "--api-key", "one", "--api-key", "two") as server:
            report = load(server.url, "--rate", 200, "--requests", 40, "--prompt-tokens", 30,
                          "--output-tokens", 7, "--api-key", "one", "--api-key", "two",
                          "--key-weight", 3, "--key-weight", 1)  # fmt: skip
            self.check(report, 40)
            self.assertEqual((report["prompt_tokens"], report["output_tokens"]), (40 * 30, 40 * 7))
            self.assertEqual(sum(key["requests"] for key in report["keys"]), 40)
            self.assertGreater(report["keys"][0]["requests"], report["keys"][1]["requests"])
            refused = load(server.url, "--rate", 100, "--requests", 3, "--api-key", "other", code=3)
            self.assertEqual(refused["errors"], {"HTTP 401": 3})

    def test_traces(self):
        with e2e.serving(Options.model) as server:
            path = azure(Options.folder / "a.csv", [(1.5, 400, 20), (1.0, 100, 10), (2.25, 4000, 30)])
            report = load(server.url, "--trace", path, "--rate-scale", 10, "--length-scale", 0.5,
                          "--max-prompt-tokens", 300, "--requests", 10)  # fmt: skip
            self.check(report, 3)
            self.assertEqual((report["prompt_tokens"], report["output_tokens"]), (50 + 200 + 300, 5 + 10 + 15))
            path = mooncake(Options.folder / "m.jsonl", [(0, 1000, 20, [1, 2]), (400, 1024, 8, [1, 3])])
            report = load(server.url, "--trace", path, "--length-scale", 0.25, "--requests", 10)
            self.check(report, 2)
            self.assertEqual(report["prompt_tokens"], 250 + 256)
            report = load(server.url, "--trace", path, "--requests", 10, code=3)
            self.assertEqual(report["errors"], {"HTTP 400": 2})  # over the context

    def test_the_search_ends_within_its_slo(self):
        with e2e.serving(Options.model) as server:
            found = load(server.url, "--search", "--rate", 1, "--requests", 8, "--prompt-tokens", 20,
                         "--output-tokens", 4, "--search-start", 400, "--search-steps", 1,
                         "--unloaded-requests", 4, "--slo-ttft", 0.0001)  # fmt: skip
            self.assertEqual(found["highest_rate"], 0)  # no server is that fast
            # One bad answer of eight is enough to know.
            self.assertTrue(all(run["errors"].get("broken off", 0) > 0 for run in found["runs"]), found["runs"])
            found = load(server.url, "--search", "--rate", 1, "--requests", 8, "--prompt-tokens", 20,
                         "--output-tokens", 4, "--search-start", 20, "--search-steps", 1,
                         "--slo-ttft", 60000, "--slo-itl", 60000)  # fmt: skip
            self.assertGreaterEqual(found["highest_rate"], 20)
            self.assertNotIn("unloaded", found)
            best = [run for run in found["runs"] if run["rate"] == found["highest_rate"]]
            self.assertGreaterEqual(best[0]["goodput"], 0.95)

    def test_nobody_listens(self):
        report = load("http://127.0.0.1:1", "--rate", 100, "--requests", 2, code=3)
        self.assertEqual(sum(report["errors"].values()), 2)
        self.assertIn("connect", next(iter(report["errors"])))

    def test_wrong_usage(self):
        self.assertIn("http://", load("https://h:1", "--rate", 1, "--requests", 1, code=2))
        self.assertIn("bound", load("http://127.0.0.1:1", "--rate", 1, code=2))
        self.assertIn("/none.csv", load("http://127.0.0.1:1", "--trace", "/none.csv", "--requests", 1, code=2))


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
