"""What well-formed requests get: shapes, streams, counts, limits, repeatability, metrics."""

import concurrent.futures
import json
import time
import unittest

from cadre_http import Case, Client, Options, chat, completion, joined, metrics, post, total

PATHS = {"/v1/completions": completion, "/v1/chat/completions": chat}
TTFT_BUCKETS = (
    ".001 .005 .01 .02 .04 .06 .08 .1 .25 .5 .75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
)


def text_of(choice):
    return choice["message"]["content"] if "message" in choice else choice["text"]


class Shapes(Case):
    def test_models(self):
        with Client() as client:
            listing = self.ok(client.get("/v1/models"))
        self.assertEqual(listing["object"], "list")
        self.assertIn(Options.model, [m["id"] for m in listing["data"]])
        for entry in listing["data"]:
            self.assertEqual(entry["object"], "model")
            self.assertIsInstance(entry["created"], int)

    def test_health_and_ready(self):
        with Client() as client:
            self.assertEqual(client.get("/health").status, 200)
            self.assertEqual(client.get("/ready").status, 200)

    def test_completion(self):
        reply = self.ok(post("/v1/completions", completion(max_tokens=5)))
        self.assertEqual(reply["object"], "text_completion")
        self.assertTrue(reply["id"].startswith("cmpl-"), reply["id"])
        self.assertEqual(reply["model"], Options.model)
        self.assertLess(abs(reply["created"] - time.time()), 3600)
        self.assertIn("system_fingerprint", reply)
        [choice] = reply["choices"]
        self.assertEqual((choice["index"], choice["finish_reason"]), (0, "length"))
        self.assertIsInstance(choice["text"], str)
        usage = reply["usage"]
        self.assertEqual(usage["prompt_tokens"], 4)
        self.assertEqual(usage["completion_tokens"], 5)
        self.assertEqual(usage["total_tokens"], 9)
        self.assertIsInstance(usage["prompt_tokens_details"]["cached_tokens"], int)

    def test_chat(self):
        reply = self.ok(post("/v1/chat/completions", chat(max_tokens=None, max_completion_tokens=5)))
        self.assertEqual(reply["object"], "chat.completion")
        self.assertTrue(reply["id"].startswith("chatcmpl-"), reply["id"])
        [choice] = reply["choices"]
        self.assertEqual(choice["message"]["role"], "assistant")
        self.assertIsInstance(choice["message"]["content"], str)
        self.assertEqual(choice["finish_reason"], "length")
        self.assertEqual(reply["usage"]["completion_tokens"], 5)
        self.assertGreater(reply["usage"]["prompt_tokens"], 0)

    def test_ids_are_unique(self):
        ids = {self.ok(post(p, make(max_tokens=1)))["id"] for p, make in PATHS.items() for _ in "ab"}
        self.assertEqual(len(ids), 4)

    def test_content_parts(self):
        parts = [{"type": "text", "text": "Say some"}, {"type": "text", "text": "thing."}]
        whole = self.ok(post("/v1/chat/completions", chat("Say something.")))
        split = self.ok(post("/v1/chat/completions", chat(parts)))
        one = self.ok(post("/v1/chat/completions", chat([{"type": "text", "text": "Say something."}])))
        self.assertEqual(text_of(whole["choices"][0]), text_of(one["choices"][0]))
        self.assertEqual(whole["usage"]["prompt_tokens"], one["usage"]["prompt_tokens"])
        self.assertGreater(split["usage"]["prompt_tokens"], 0)

    def test_prompt_forms(self):
        a, b = [5, 6, 7], [9, 10]
        alone = [text_of(self.ok(post("/v1/completions", completion(p)))["choices"][0]) for p in (a, b)]
        both = self.ok(post("/v1/completions", completion([a, b])))
        self.assertEqual([c["index"] for c in both["choices"]], [0, 1])
        self.assertEqual([text_of(c) for c in both["choices"]], alone)
        self.assertEqual(both["usage"]["prompt_tokens"], 5)
        self.assertEqual(both["usage"]["completion_tokens"], 16)
        words = self.ok(post("/v1/completions", completion(["In the", "And God said"])))
        self.assertEqual(len(words["choices"]), 2)
        single = self.ok(post("/v1/completions", completion("And God said")))
        self.assertEqual(text_of(words["choices"][1]), text_of(single["choices"][0]))

    def test_unknown_field_is_ignored(self):
        plain = self.ok(post("/v1/completions", completion()))
        odd = self.ok(post("/v1/completions", completion(nobody_knows_this={"a": [1]})))
        self.assertEqual(text_of(plain["choices"][0]), text_of(odd["choices"][0]))

    def test_keep_alive(self):
        with Client() as client:
            first = client.post("/v1/completions", completion())
            sock = client.connection.sock
            second = client.post("/v1/completions", completion())
            self.assertIsNotNone(sock)
            self.assertIs(client.connection.sock, sock)
        self.assertEqual(self.ok(first)["choices"], self.ok(second)["choices"])


class Limits(Case):
    def test_max_tokens_default_of_completions_is_16(self):
        reply = self.ok(post("/v1/completions", completion(max_tokens=None)))
        self.assertEqual(reply["usage"]["completion_tokens"], 16)
        self.assertEqual(reply["choices"][0]["finish_reason"], "length")

    def test_max_tokens_default_of_chat_is_the_rest_of_the_context(self):
        if not 0 < Options.max_context <= 4096:
            self.skipTest("the context is unknown or too long to fill (--max-context)")
        usage = self.ok(post("/v1/chat/completions", chat(max_tokens=None)))["usage"]
        self.assertEqual(usage["total_tokens"], Options.max_context)

    def test_context_is_a_hard_bound(self):
        if not Options.max_context:
            self.skipTest("the context is unknown (--max-context)")
        at, over = Options.max_context - 4, Options.max_context - 3
        self.refused(post("/v1/completions", completion(max_tokens=over)), 400)
        self.refused(post("/v1/completions", completion([5] * (at + 5), max_tokens=1)), 400)
        if Options.max_context <= 4096:
            reply = self.ok(post("/v1/completions", completion(max_tokens=at)))
            self.assertEqual(reply["usage"]["total_tokens"], Options.max_context)
        self.works()

    def test_stop_string_ends_the_text_before_it(self):
        for path, make in PATHS.items():
            full = text_of(self.ok(post(path, make(max_tokens=24)))["choices"][0])
            middle = len(full) // 2
            stop = full[middle : middle + 3]
            if len(stop) < 3 or "\ufffd" in stop:
                self.skipTest(f"the model's text gives no stop string: {full!r}")
            for value in (stop, ["\x00never", stop]):
                body = make(max_tokens=24, stop=value)
                choice = self.ok(post(path, body))["choices"][0]
                self.assertEqual(choice["finish_reason"], "stop")
                self.assertEqual(text_of(choice), full[: full.index(stop)])
                chunks = self.stream(path, body)
                self.assertEqual(joined(chunks), full[: full.index(stop)], "stream leaks the stop")

    def test_stop_takes_four_strings(self):
        body = completion(stop=[f"\x00{i}" for i in range(4)])
        self.ok(post("/v1/completions", body))
        self.refused(post("/v1/completions", completion(stop=[f"\x00{i}" for i in range(5)])), 400, "stop")

    def test_n(self):
        for path, make in PATHS.items():
            body = make(n=3, max_tokens=12, temperature=1.0, seed=11)
            reply = self.ok(post(path, body))
            self.assertEqual([c["index"] for c in reply["choices"]], [0, 1, 2])
            self.assertEqual(reply["usage"]["completion_tokens"], 36)
            texts = [text_of(c) for c in reply["choices"]]
            self.assertGreater(len(set(texts)), 1, "three choices at temperature 1 are all the same")
            chunks = self.stream(path, body)
            self.assertEqual([joined(chunks, i) for i in range(3)], texts)


class Repeatability(Case):
    def test_seed(self):
        for path, make in PATHS.items():
            body = make(max_tokens=16, temperature=1.0, seed=42)
            one, two = (text_of(self.ok(post(path, body))["choices"][0]) for _ in "ab")
            self.assertEqual(one, two)
            others = {
                text_of(self.ok(post(path, {**body, "seed": s}))["choices"][0]) for s in range(4)
            }
            self.assertGreater(len(others), 1, "the seed has no effect")

    def test_concurrent_requests_get_what_each_gets_alone(self):
        bodies = [
            completion([5 + i, 6, 7 + i], max_tokens=8 + i, temperature=i % 2, seed=i, logprobs=2)
            for i in range(16)
        ]
        alone = [self.ok(post("/v1/completions", b))["choices"] for b in bodies]
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            replies = list(pool.map(lambda b: post("/v1/completions", b), bodies))
        for reply, expected in zip(replies, alone, strict=True):
            self.assertEqual(self.ok(reply)["choices"], expected)  # logprobs included, bit for bit


class Logprobs(Case):
    def test_completions(self):
        for k in (0, 1, 5, 20):
            body = completion(max_tokens=6, logprobs=k)
            logprobs = self.ok(post("/v1/completions", body))["choices"][0]["logprobs"]
            self.assertEqual(len(logprobs["tokens"]), 6)
            self.assertEqual(len(logprobs["token_logprobs"]), 6)
            self.assertTrue(all(p <= 0 for p in logprobs["token_logprobs"]))
            self.assertEqual(len(logprobs["text_offset"]), 6)
            if k:
                self.assertTrue(all(1 <= len(t) <= k + 1 for t in logprobs["top_logprobs"]))
                greedy = [max(t.values()) for t in logprobs["top_logprobs"]]
                self.assertEqual(greedy, logprobs["token_logprobs"])

    def test_chat(self):
        body = chat(max_tokens=6, logprobs=True, top_logprobs=5)
        choice = self.ok(post("/v1/chat/completions", body))["choices"][0]
        content = choice["logprobs"]["content"]
        self.assertEqual(len(content), 6)
        for entry in content:
            self.assertLessEqual(entry["logprob"], 0)
            self.assertEqual(len(entry["top_logprobs"]), 5)
            ranked = [t["logprob"] for t in entry["top_logprobs"]]
            self.assertEqual(ranked, sorted(ranked, reverse=True))
            self.assertEqual(entry["logprob"], ranked[0])  # greedy
        joined_bytes = b"".join(bytes(e["bytes"]) for e in content)
        self.assertEqual(joined_bytes.decode("utf-8", "replace"), text_of(choice))

    def test_absent_unless_asked(self):
        self.assertIsNone(self.ok(post("/v1/completions", completion()))["choices"][0].get("logprobs"))
        self.assertIsNone(self.ok(post("/v1/chat/completions", chat()))["choices"][0].get("logprobs"))

    def test_bounds(self):
        self.refused(post("/v1/completions", completion(logprobs=21)), 400, "logprobs")
        self.refused(post("/v1/completions", completion(logprobs=-1)), 400, "logprobs")
        over = chat(logprobs=True, top_logprobs=21)
        self.refused(post("/v1/chat/completions", over), 400, "top_logprobs")
        without = chat(logprobs=False, top_logprobs=3)
        self.refused(post("/v1/chat/completions", without), 400, "top_logprobs")


class Streams(Case):
    def test_text_equals_the_unstreamed_text(self):
        prompts = ["In the beginning", "naïve café 🙂 日本語 ", "\n\n"]
        for path, make in PATHS.items():
            for prompt in prompts:
                for temperature in (0, 1.0):
                    body = make(prompt, max_tokens=48, temperature=temperature, seed=3)
                    expected = self.ok(post(path, body))["choices"][0]
                    chunks = self.stream(path, body)
                    self.assertEqual(joined(chunks), text_of(expected))
                    reasons = [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]]
                    self.assertEqual([r for r in reasons if r], [expected["finish_reason"]])
                    if len(text_of(expected)) > 16:  # special tokens, 48 of them perhaps, have none
                        self.assertGreater(len(chunks), 4, "48 tokens came in a few chunks")

    def test_no_character_is_split(self):
        for seed in range(6):
            body = completion("日本語", max_tokens=48, temperature=1.5, seed=seed)
            text = text_of(self.ok(post("/v1/completions", body))["choices"][0])
            parts = [c["choices"][0]["text"] for c in self.stream("/v1/completions", body) if c["choices"]]
            self.assertEqual(sum(p.count("\ufffd") for p in parts), text.count("\ufffd"))
            self.assertEqual("".join(parts), text)

    def test_roles_reasons_and_object(self):
        chunks = self.stream("/v1/chat/completions", chat(n=2, temperature=1.0, seed=5))
        self.assertEqual(chunks[0]["object"], "chat.completion.chunk")
        for index in range(2):
            mine = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
            self.assertEqual(mine[0]["delta"].get("role"), "assistant")
            self.assertTrue(all("role" not in c["delta"] for c in mine[1:]), "a later delta has a role")
            self.assertEqual([c["finish_reason"] for c in mine[:-1]], [None] * (len(mine) - 1))
            self.assertEqual(mine[-1]["finish_reason"], "length")

    def test_usage_only_on_request(self):
        for path, make in PATHS.items():
            expected = self.ok(post(path, make()))["usage"]
            chunks = self.stream(path, make(stream_options={"include_usage": True}))
            last = chunks[-1]
            self.assertEqual(last["choices"], [])
            for key in ("prompt_tokens", "completion_tokens", "total_tokens"):
                self.assertEqual(last["usage"][key], expected[key])
            self.assertTrue(all(not c.get("usage") and c["choices"] for c in chunks[:-1]))
            for options in (None, {"include_usage": False}):
                plain = self.stream(path, make(stream_options=options))
                self.assertTrue(all(not c.get("usage") and c["choices"] for c in plain))

    def test_stream_options_need_a_stream(self):
        for path, make in PATHS.items():
            for stream in (None, False):
                body = make(stream=stream, stream_options={"include_usage": True})
                self.refused(post(path, body), 400, "stream_options")

    def test_logprobs_in_chunks(self):
        body = chat(max_tokens=6, logprobs=True, top_logprobs=2)
        whole = self.ok(post("/v1/chat/completions", body))["choices"][0]["logprobs"]["content"]
        entries = []
        for chunk in self.stream("/v1/chat/completions", body):
            for choice in chunk["choices"]:
                entries += (choice.get("logprobs") or {}).get("content") or []
        self.assertEqual(entries, whole)

    def test_an_error_before_the_first_token_is_no_200(self):
        self.refused(post("/v1/completions", completion(stream=True, temperature=-1)), 400, "temperature")
        self.refused(post("/v1/chat/completions", chat(stream=True, model="no-such-model")), 404)

    def test_disconnect_frees_the_request(self):
        length = min(Options.max_context - 8, 4000) if Options.max_context else 400
        before = total(metrics(), "generation_tokens")
        client = Client()
        response = client.start("POST", "/v1/completions", completion(stream=True, max_tokens=length))
        self.assertEqual(response.status, 200)
        self.assertTrue(json.loads(response.readline()[5:])["choices"])
        response.close()
        client.connection.close()
        deadline = time.monotonic() + 30
        while total(samples := metrics(), "num_requests_running"):
            self.assertLess(time.monotonic(), deadline, "the abandoned request still runs")
        made = total(samples, "generation_tokens") - before
        self.assertLess(made, length, "the abandoned request ran to its end")
        self.works()


class Metrics(Case):
    GAUGES = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    COUNTERS = ("prefix_cache_queries", "prefix_cache_hits", "num_preemptions", "prompt_tokens",
                "generation_tokens", "request_success")  # fmt: skip
    HISTOGRAMS = ("time_to_first_token_seconds", "inter_token_latency_seconds",
                  "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
                  "request_queue_time_seconds", "request_prefill_time_seconds",
                  "request_decode_time_seconds", "request_inference_time_seconds",
                  "iteration_tokens_total", "request_prompt_tokens", "request_generation_tokens",
                  "request_params_n", "request_params_max_tokens")  # fmt: skip

    def test_names(self):
        self.works()
        samples = metrics()
        for name in self.GAUGES + self.COUNTERS:
            with self.subTest(name):
                total(samples, name)
        names = {k.split("{")[0] for k in samples}
        for name in self.HISTOGRAMS:
            with self.subTest(name):
                for part in ("bucket", "sum", "count"):
                    self.assertIn(f"cadre_{name}_{part}", names)

    def test_buckets(self):
        prefix = "cadre_time_to_first_token_seconds_bucket{"
        found = {k.split('le="')[1].split('"')[0] for k in metrics() if k.startswith(prefix)}
        bounds = sorted(float(b) for b in found)
        self.assertEqual(bounds, [float(b) for b in TTFT_BUCKETS.split()] + [float("inf")])

    def test_counters_count(self):
        before = metrics()
        self.ok(post("/v1/completions", completion(tuple(range(5, 12)), max_tokens=9)))
        after = metrics()

        def grown(name):
            return total(after, name) - total(before, name)

        self.assertEqual(grown("prompt_tokens"), 7)
        self.assertEqual(grown("generation_tokens"), 9)
        self.assertEqual(grown("request_success"), 1)
        series = [k for k in after if "request_success" in k and 'finished_reason="length"' in k]
        self.assertTrue(series, "request_success has no finished_reason label")
        key = "cadre_e2e_request_latency_seconds_count"
        counts = [sum(v for k, v in s.items() if k.startswith(key)) for s in (before, after)]
        self.assertEqual(counts[1] - counts[0], 1)


if __name__ == "__main__":
    unittest.main()
