#!/usr/bin/env python3
"""The real `cadre serve` on a tiny model that is trained here. Standard library only.

    python3 tests/e2e/serve_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

import concurrent.futures
import contextlib
import functools
import http.client
import json
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest

import e2e
from e2e import ROOT, TIMEOUT, Options

CLIENTS = ROOT / "tests/client"
CONTEXT = 1024
cadre = functools.partial(e2e.cadre, code=None)


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=20", "eval.interval=0")
    Options.folder, Options.model = shop.folder, shop.model(run, "model")
    Options.requests = 500 if Options.long else 24


class Server:
    """A running `cadre serve`, ready, on a port of its own choice."""

    def __init__(self, flags, model):
        self.log, self.model = tempfile.TemporaryFile(), model or Options.model
        self.process = subprocess.Popen(
            [Options.cadre, "serve", "--model", str(self.model), "--port", "0", *flags],
            cwd=ROOT, stdout=self.log, stderr=subprocess.STDOUT)  # fmt: skip
        self.port = 0

    def output(self):
        return e2e.contents(self.log)

    def wait_until_ready(self):
        """A process that ends before it is ready fails the test; ctest bounds the wait."""
        while True:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}\n{self.output()}")
            found = re.search(r"http://127\.0\.0\.1:(\d+)", self.output())
            self.port = int(found.group(1)) if found else 0
            with contextlib.suppress(OSError):
                if self.port and self.get("/ready")[0] == 200:
                    return
            time.sleep(0.02)

    def connection(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT)

    def get(self, path):
        with contextlib.closing(self.connection()) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def post(self, body, path="/v1/completions"):
        """(status, parsed body, headers)."""
        with contextlib.closing(self.connection()) as connection:
            connection.request("POST", path, json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers

    def stream(self, body, path="/v1/completions"):
        """An opened stream: (connection, response)."""
        connection = self.connection()
        connection.request("POST", path, json.dumps({**body, "stream": True}))
        return connection, connection.getresponse()

    def gauge(self, name):
        return float(re.search(rf"^cadre_{name} (\S+)$", self.get("/metrics")[1], re.M).group(1))

    def wait_until_the_cache_is_empty(self):
        """Answers that end at a stop string, and clients that leave, free theirs at the next step."""
        deadline = time.monotonic() + TIMEOUT
        while used := self.gauge("kv_cache_usage_perc"):
            if time.monotonic() > deadline:
                raise AssertionError(f"{used} of the KV cache is still in use after {TIMEOUT} s")


@contextlib.contextmanager
def serving(*flags, model=None):
    server = Server(flags, model)
    try:
        server.wait_until_ready()
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.wait()
        server.log.close()


def chunks(response):
    """Parsed chunks of a stream that ends as it should."""
    payloads = [line[5:].strip() for line in response if line.startswith(b"data:")]
    if not payloads or payloads[-1] != b"[DONE]":
        raise AssertionError(f"the stream broke off after {payloads[-1:]}")
    return [json.loads(payload) for payload in payloads[:-1]]


def texts(choices):
    """{index: (text, finish_reason)} of a whole answer's choices, or of all choices of a stream."""
    found = {}
    for choice in choices:
        part = choice.get("delta", choice.get("message"))
        text = (part.get("content") or "") if part is not None else choice["text"]
        before, reason = found.get(choice["index"], ("", None))
        found[choice["index"]] = (before + text, choice["finish_reason"] or reason)
    return found


def random_request(seed):
    """(path, body) of a sampled request; the same for the same seed."""
    rng = random.Random(seed)
    body = {"temperature": rng.choice([0, 0.7, 1.0, 1.6]), "seed": rng.randrange(1 << 40),
            "max_tokens": rng.randint(1, 60), "n": rng.choice([1, 1, 1, 3]),
            "top_p": rng.choice([1, 0.8]), "top_k": rng.choice([0, 20]), "min_p": rng.choice([0, 0.05]),
            "min_tokens": rng.choice([0, 1]), "frequency_penalty": rng.choice([0, 0, 0.5]),
            "presence_penalty": rng.choice([0, 0, -1]), "repetition_penalty": rng.choice([1, 1, 1.3]),
            "logit_bias": rng.choice([{}, {str(rng.randrange(512)): 4}]), "skip_special_tokens": rng.random() < 0.7,
            "ignore_eos": rng.random() < 0.5}  # fmt: skip
    if rng.random() < 0.5:
        body["stop"] = rng.sample(["e", "the", " sea", "\u00e9", "s ", "lamps a"], rng.randint(1, 3))
    words = rng.choices(["the sea", "caf\u00e9", "\U0001f642", "seven", "\n", "<|im_end|>"], k=5)
    if rng.random() < 0.5:
        return "/v1/chat/completions", {**body, "messages": [{"role": "user", "content": " ".join(words)}]}
    ids = [rng.randrange(512) for _ in range(rng.randint(1, 80))]
    return "/v1/completions", {**body, "prompt": rng.choice([" ".join(words), ids])}


class Clients(unittest.TestCase):
    def run_suite(self, server, name, *flags):
        done = subprocess.run(
            [sys.executable, CLIENTS / name, "--base-url", f"http://127.0.0.1:{server.port}", *flags],
            capture_output=True, text=True, timeout=TIMEOUT, cwd=CLIENTS, check=False)  # fmt: skip
        if done.returncode == 77:
            self.skipTest(done.stderr.strip())
        self.assertEqual(done.returncode, 0, done.stderr[-5000:])

    def test_raw_http(self):
        with serving("--api-key", "secret", "--set", "read_timeout_s=2") as server:
            self.run_suite(server, "raw_http_test.py", "--api-key", "secret", "--slow")

    def test_openai_package(self):
        with serving("--api-key", "secret") as server:
            self.run_suite(server, "openai_client_test.py", "--api-key", "secret")

    def test_anthropic_package(self):
        with serving("--api-key", "secret") as server:
            self.run_suite(server, "anthropic_client_test.py", "--api-key", "secret")


class Answers(unittest.TestCase):
    def test_streams_say_what_whole_answers_say(self):
        with serving() as server:
            def both(seed):
                path, body = random_request(seed)
                status, whole, _ = server.post(body, path)
                connection, response = server.stream(body, path)
                with contextlib.closing(connection):
                    streamed = [c for chunk in chunks(response) for c in chunk["choices"]]
                return status, texts(whole["choices"]), texts(streamed), body

            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                for status, whole, streamed, body in pool.map(both, range(Options.requests)):
                    self.assertEqual(status, 200)
                    self.assertEqual(streamed, whole, body)
            server.wait_until_the_cache_is_empty()

    def test_guessing_changes_no_answer(self):
        bodies = [{"prompt": [5, 6, 7, 5, 6, 7, 5], "max_tokens": 40, "seed": seed, "logprobs": 2,
                   "temperature": seed % 2, "ignore_eos": True} for seed in range(4)]  # fmt: skip
        with serving() as server:
            expected = [server.post(body)[1]["choices"] for body in bodies]
        methods = (("method=ngram", "prompt_lookup_min=1"), ("method=self", "num_layers=1"),
                   ("method=draft_model", f"model={Options.model}"))  # fmt: skip
        for fields in methods:
            flags = [part for field in fields for part in ("--set", f"speculative.{field}")]
            with self.subTest(fields), serving(*flags) as server:
                self.assertEqual([server.post(body)[1]["choices"] for body in bodies], expected)
                guessed = server.gauge("spec_decode_draft_tokens_total")
                right = server.gauge("spec_decode_accepted_tokens_total")
                self.assertGreater(guessed, 0)
                self.assertLessEqual(right, guessed)
                if "draft_model" in fields[0]:
                    self.assertEqual(right, guessed)

    def test_a_prompt_over_the_context_is_400(self):
        with serving() as server:
            status, body, _ = server.post({"prompt": [5] * CONTEXT, "max_tokens": 1})
            self.assertEqual((status, body["error"]["param"]), (400, "prompt"))
            self.assertIn(str(CONTEXT), body["error"]["message"])
            body = {"prompt": [5] * (CONTEXT - 1), "max_tokens": 1, "ignore_eos": True}
            self.assertEqual(server.post(body)[1]["usage"]["total_tokens"], CONTEXT)

    def test_open_answers_fit_a_small_cache(self):
        config = json.loads((Options.model / "config.json").read_text(encoding="utf-8"))
        size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
        token = 2 * 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * size
        with serving("--set", f"kv_cache_memory_bytes={256 * token}", "--dtype", "bf16") as server:
            said = re.search(r"KV cache has room for (\d+) tokens, less than the context of 1024", server.output())
            room = int(said.group(1))
            messages = [{"role": "user", "content": "the sea"}]
            for path, asked in (("/v1/chat/completions", {"messages": messages}), ("/v1/responses", {"input": "the sea"})):
                status, reply, _ = server.post({**asked, "ignore_eos": True}, path)
                self.assertEqual(status, 200, reply)
                self.assertEqual(reply["usage"]["total_tokens"], room)
            status, reply, _ = server.post({"messages": messages, "max_tokens": 300}, "/v1/chat/completions")
            self.assertEqual(status, 400)
            self.assertIn(f"KV cache of {room}", reply["error"]["message"])

    def test_priorities_need_a_policy_that_knows_them(self):
        body = {"prompt": [5, 6], "max_tokens": 1, "priority": 3}
        for policy, expected in (("fcfs", 400), ("priority", 200), ("fair", 200)):
            with serving("--set", f"scheduling_policy={policy}") as server:
                status, reply, _ = server.post(body)
                self.assertEqual(status, expected, reply)
                if status == 400:
                    self.assertEqual(reply["error"]["param"], "priority")
                    self.assertIn("scheduling_policy", reply["error"]["message"])

    def test_a_prompt_that_came_before_is_cached(self):
        with serving() as server:
            body = {"prompt": list(range(5, 105)), "max_tokens": 4, "temperature": 0}
            first, second = (server.post(body)[1] for _ in range(2))
            self.assertEqual(first["usage"]["prompt_tokens_details"]["cached_tokens"], 0)
            self.assertGreaterEqual(second["usage"]["prompt_tokens_details"]["cached_tokens"], 64)
            self.assertEqual(second["choices"], first["choices"])
            salted = server.post({**body, "cache_salt": "other"})[1]
            self.assertEqual(salted["usage"]["prompt_tokens_details"]["cached_tokens"], 0)

    def test_a_million_prompts_take_no_memory(self):
        def peak():
            status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text(encoding="ascii")
            return int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1)) << 10

        with serving() as server:
            self.assertEqual(server.post({"prompt": "a", "max_tokens": 1})[0], 200)
            before = peak()
            for one in ([5], "a", []):
                body = {"prompt": [one] * 1_000_000, "max_tokens": 1}
                self.assertEqual(server.post(body)[0], 400)
                self.assertEqual(server.post({"input": body["prompt"]}, "/v1/embeddings")[0], 400)
            self.assertLess(peak() - before, 48 << 20)

    def test_a_full_queue_is_429_and_the_others_are_right(self):
        with serving("--set", "max_num_seqs=2", "--set", "max_queue_size=4") as server:
            body = {"prompt": [5, 6, 7], "max_tokens": 300, "temperature": 0, "ignore_eos": True}
            expected = server.post(body)[1]["choices"][0]["text"]
            with concurrent.futures.ThreadPoolExecutor(64) as pool:
                replies = list(pool.map(lambda _: server.post(body), range(64)))
            good = [reply for status, reply, _ in replies if status == 200]
            refused = [(reply, headers) for status, reply, headers in replies if status == 429]
            self.assertEqual(len(good) + len(refused), 64)
            self.assertGreaterEqual(len(good), 6)
            self.assertTrue(refused)
            self.assertEqual({reply["choices"][0]["text"] for reply in good}, {expected})
            for reply, headers in refused:
                self.assertIn("queue full", reply["error"]["message"])
                self.assertGreater(int(headers["Retry-After"]), 0)
            self.assertEqual(server.post(body)[0], 200)


class Ends(unittest.TestCase):
    LONG = {"prompt": [5, 6], "max_tokens": CONTEXT - 2, "n": 4, "ignore_eos": True, "seed": 1}

    def begin(self, server):
        connection, response = server.stream(self.LONG)
        self.assertTrue(response.readline().startswith(b"data:"))
        return connection, response

    def test_sigterm_finishes_what_runs_and_takes_nothing_new(self):
        with serving("--set", f"drain_timeout_s={TIMEOUT}") as server:
            connection, response = self.begin(server)
            server.process.send_signal(signal.SIGTERM)
            status = 200
            while status == 200:
                try:
                    status = server.get("/ready")[0]
                except OSError:  # it has ended by now
                    status = 503
            self.assertEqual(status, 503)
            with contextlib.suppress(OSError):
                self.assertEqual(server.post({"prompt": "a"})[0], 503)
            ends = [c["finish_reason"] for chunk in chunks(response) for c in chunk["choices"]]
            self.assertEqual([e for e in ends if e], ["length"] * 4)
            connection.close()
            self.assertEqual(server.process.wait(TIMEOUT), 0, server.output())

    def test_no_time_to_drain(self):
        body = {**self.LONG, "n": 24}
        with serving("--set", "drain_timeout_s=0") as server, concurrent.futures.ThreadPoolExecutor() as pool:
            connection, response = server.stream(body)
            whole = pool.submit(server.post, body)
            while server.gauge("num_requests_running") < 48:
                self.assertFalse(whole.done())
            server.process.send_signal(signal.SIGTERM)
            payloads = [line[5:].strip() for line in response if line.startswith(b"data:")]
            connection.close()
            self.assertEqual(payloads[-1], b"[DONE]")
            self.assertEqual(json.loads(payloads[-2])["error"]["code"], "unavailable")
            status, reply, headers = whole.result()
            self.assertEqual((status, reply["error"]["code"]), (503, "unavailable"))
            self.assertGreater(int(headers["Retry-After"]), 0)
            self.assertEqual(server.process.wait(TIMEOUT), 0, server.output())

    def test_a_disconnect_frees_the_kv_blocks(self):
        with serving() as server:
            connection, response = self.begin(server)
            self.assertGreater(server.gauge("kv_cache_usage_perc"), 0)
            response.close()
            connection.close()
            server.wait_until_the_cache_is_empty()
            while 'cadre_request_failure_total{kind="cancelled"} 4' not in server.get("/metrics")[1]:
                self.assertNotRegex(server.get("/metrics")[1], r"cadre_request_success_total\{[^}]*\} [1-9]")


class Starts(unittest.TestCase):
    @contextlib.contextmanager
    def loading(self):
        """A server that listens and waits for its tokenizer's file; a function that lets it go on."""
        model = pathlib.Path(shutil.copytree(Options.model, tempfile.mkdtemp(dir=Options.folder), dirs_exist_ok=True))
        with e2e.leased(model / "tokenizer.json") as go_on:
            server = Server(("--api-key", "secret"), model)
            try:
                e2e.wait_until(lambda: "listening on" in server.output(), server.process, "it listens")
                server.port = int(re.search(r"listening on 127\.0\.0\.1:(\d+)", server.output()).group(1))
                yield server, go_on
            finally:
                server.process.kill()
                server.process.wait()
                server.log.close()

    def test_it_listens_while_the_model_is_loaded(self):
        with self.loading() as (server, go_on):
            self.assertEqual(server.get("/health")[0], 200)
            status, text = server.get("/ready")
            self.assertEqual(status, 503)
            self.assertIn("being loaded", text)
            self.assertEqual(server.get("/v1/models")[0], 401)
            self.assertEqual(e2e.status(server.port, "/v1/models", headers={"X-Api-Key": "secret"}), 503)
            # Who wants the same port is told before the model is loaded.
            again = cadre("serve", "--model", server.model, "--port", server.port)
            self.assertEqual(again.returncode, 1)
            self.assertIn(f"cannot listen on 127.0.0.1:{server.port}", again.stderr)
            self.assertEqual(server.get("/ready")[0], 503)
            go_on()
            e2e.wait_until(lambda: server.get("/ready")[0] == 200, server.process, "it is ready")
            self.assertEqual(e2e.status(server.port, "/v1/models", headers={"X-Api-Key": "secret"}), 200)

    def test_sigterm_ends_a_server_that_still_loads(self):
        with self.loading() as (server, _):
            server.process.send_signal(signal.SIGTERM)
            self.assertEqual(server.process.wait(TIMEOUT), 0, server.output())
            self.assertNotIn("serving", server.output())


class Refusals(unittest.TestCase):
    def refused(self, code, *flags, model=None):
        """The one line that a server says which cannot start: 2 for usage and config, 1 for the rest."""
        if "--port" not in flags:
            flags = ("--port", 0, *flags)
        done = cadre("serve", "--model", model or Options.model, *flags)
        self.assertEqual(done.returncode, code, done.stderr)
        lines = done.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        self.assertEqual(errors, lines[-1:], done.stderr)
        return errors[0]

    def copy(self):
        folder = pathlib.Path(tempfile.mkdtemp(dir=Options.folder))
        return shutil.copytree(Options.model, folder, dirs_exist_ok=True)

    def test_a_taken_port(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            self.assertIn(f"127.0.0.1:{port}", self.refused(1, "--port", port))

    def test_missing_and_torn_weights(self):
        folder = self.copy()
        weights = folder / "model.safetensors"
        data = weights.read_bytes()
        for size in (0, 7, len(data) // 2, len(data) - 1):
            weights.write_bytes(data[:size])
            self.assertIn("model.safetensors", self.refused(1, model=folder))
        weights.unlink()
        self.assertIn(str(folder), self.refused(1, model=folder))
        self.assertIn("nowhere", self.refused(1, model=Options.folder / "nowhere"))

    def test_configs_that_fit_no_model(self):
        for key, value in (("model_type", "rwkv9"), ("num_key_value_heads", 3), ("vocab_size", 100)):
            folder = self.copy()
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            (folder / "config.json").write_text(json.dumps({**config, key: value}), encoding="utf-8")
            self.assertTrue(self.refused(1, model=folder))

    def test_other_torn_files_of_the_folder(self):
        for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
            folder = self.copy()
            (folder / name).write_text('{"temperature": "hot", "chat_template": "{% if %}"', encoding="utf-8")
            self.assertIn(name, self.refused(1, model=folder))
        for name, key, value in (("tokenizer_config.json", "chat_template", "{% if %}"),
                                 ("generation_config.json", "temperature", "hot")):  # fmt: skip
            folder = self.copy()
            (folder / name).write_text(json.dumps({key: value}), encoding="utf-8")
            self.assertIn(key, self.refused(1, model=folder))

    def test_guesses_that_nobody_can_make(self):
        for fields, said in (
            (["method=self"], "num_layers"),
            (["method=self", "num_layers=99"], "99 (allowed: 1 to"),
            (["model=x"], "speculative.model"),
            (["method=draft_model"], "speculative.model"),
            (["method=ngram", "prompt_lookup_min=9"], "prompt_lookup_min: 9"),
        ):
            flags = [part for field in fields for part in ("--set", f"speculative.{field}")]
            with self.subTest(fields):
                self.assertIn(said, self.refused(2, *flags))

    def test_a_name_for_a_folder_that_ends_in_a_slash(self):
        with serving(model=f"{Options.model}/") as server:
            self.assertEqual(json.loads(server.get("/v1/models")[1])["data"][0]["id"], Options.model.name)

    def test_templates_and_compute_of_the_configuration(self):
        self.assertIn("none.jinja", self.refused(1, "--set", "chat_template=none.jinja"))
        self.assertIn("cuda", self.refused(2, "--set", "device=cuda"))
        template = Options.folder / "loud.jinja"
        template.write_text("{% for m in messages %}{{ m.content | upper }}{% endfor %}", encoding="utf-8")
        body = {"prompt": [5, 6, 7], "max_tokens": 1, "logprobs": 0, "temperature": 0}
        chat = {"messages": [{"role": "user", "content": "aa"}], "max_tokens": 1}
        found = []
        for dtype in ("f32", "bf16"):
            flags = ("--set", f"chat_template={template}", "--set", f"dtype={dtype}")
            with serving(*flags) as server:
                found.append(server.post(body)[1]["choices"][0]["logprobs"]["token_logprobs"])
                usage = server.post(chat, "/v1/chat/completions")[1]["usage"]
                self.assertEqual(usage["prompt_tokens"],
                                 server.post({"prompt": "AA", "max_tokens": 1})[1]["usage"]["prompt_tokens"])
        self.assertNotEqual(*found)

    def test_wrong_usage(self):
        self.assertIn("--port", self.refused(2, "--port", "x"))
        self.assertIn("int4", self.refused(2, "--dtype", "int4"))
        for flags in (("--temperature", "nan"), ("--temperature", "-1"), ("--top-p", "0"), ("--min-p", "2"),
                      ("--top-k", "-3"), ("--max-tokens", "0"), ("--prompt-ids", "1")):  # fmt: skip
            done = cadre("generate", "--model", Options.model, "--prompt", "a", *flags)
            self.assertEqual(done.returncode, 2)
            self.assertRegex(done.stderr, rf"\Aerror: [^\n]*{flags[0]}[^\n]*\n\Z")
        self.assertIn("70000", self.refused(2, "--set", "port=70000"))
        self.assertIn("max_request_bytes", self.refused(2, "--set", "max_total_request_bytes=1024"))
        self.assertIn("max_model_len", self.refused(2, "--set", f"max_model_len={CONTEXT + 1}"))
        self.assertIn("block_size", self.refused(2, "--set", "block_size=10"))
        self.assertIn("max_num_sequences", self.refused(2, "--set", "max_num_sequences=1"))
        self.assertIn("localhorst", self.refused(2, "--host", "localhorst"))


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
