"""What the fields and endpoints beyond plain completions get."""

import base64
import json
import math
import struct

from cadre_http import Case, Client, Options, chat, completion, post

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ASK = [{"role": "user", "content": "Say something."}]


def text_of(reply):
    return reply["choices"][0]["text"]


def token_ids(body):
    return body["choices"][0]["token_ids"]


class Sampling(Case):
    def ids(self, **fields):
        body = completion(max_tokens=12, return_token_ids=True, **fields)
        return token_ids(self.ok(post(COMPLETIONS, body)))

    def test_logit_bias(self):
        self.assertEqual(self.ids(logit_bias={"7": 100}), [7] * 12)
        free = self.ids()
        self.assertNotIn(free[0], self.ids(logit_bias={str(free[0]): -100}))

    def test_penalties(self):
        repeated = self.ids(logit_bias={"7": 50})
        self.assertEqual(repeated, [7] * 12)
        for field, value in (("frequency_penalty", 2), ("presence_penalty", 2), ("repetition_penalty", 100)):
            with self.subTest(field):  # over two tokens that are far ahead, the less likely comes up, too
                body = {"prompt": [20, 21], "logit_bias": {"7": 50, "8": 49}, field: value}
                self.assertIn(8, self.ids(**body))
        # Repetition counts the prompt's tokens, too; the others do not.
        body = {"prompt": [7] * 4, "logit_bias": {"7": 50, "8": 49}}
        self.assertEqual(self.ids(**body, frequency_penalty=2)[0], 7)
        self.assertEqual(self.ids(**body, repetition_penalty=100)[0], 8)

    def test_logprobs_stay_those_of_the_raw_logits(self):
        plain = completion(max_tokens=1, logprobs=5)
        steered = {**plain, "logit_bias": {"7": 100}, "temperature": 0.5, "presence_penalty": 1}
        first, second = (self.ok(post(COMPLETIONS, b))["choices"][0]["logprobs"] for b in (plain, steered))
        for token, logprob in first["top_logprobs"][0].items():
            self.assertEqual(second["top_logprobs"][0][token], logprob)

    def test_stop_token_ids_and_min_tokens(self):
        free = self.ids()
        stopped = self.ids(stop_token_ids=[free[0]])
        self.assertEqual(stopped, free[:1])
        late = self.ids(stop_token_ids=[free[0]], min_tokens=4)
        self.assertNotIn(free[0], late[:4])

    def test_seeded_draws_do_not_depend_on_n(self):
        body = completion(max_tokens=12, temperature=1.0, seed=5)
        alone = text_of(self.ok(post(COMPLETIONS, body)))
        self.assertEqual(text_of(self.ok(post(COMPLETIONS, {**body, "n": 3}))), alone)

    def test_truncated_prompts(self):
        short = self.ok(post(COMPLETIONS, completion([7, 8], return_token_ids=True)))["choices"][0]
        body = completion([5, 6, 7, 8], truncate_prompt_tokens=2, return_token_ids=True)
        cut = self.ok(post(COMPLETIONS, body))["choices"][0]
        self.assertEqual((cut["prompt_token_ids"], cut["text"]), ([7, 8], short["text"]))
        if Options.max_context:
            body = completion([5] * (2 * Options.max_context), truncate_prompt_tokens=-1, max_tokens=2)
            usage = self.ok(post(COMPLETIONS, body))["usage"]
            self.assertLessEqual(usage["total_tokens"], Options.max_context)
        reply = self.ok(post("/tokenize", {"prompt": "In the beginning", "truncate_prompt_tokens": 1}))
        self.assertEqual(reply["count"], 1)

    def test_bounds(self):
        bad = {"frequency_penalty": 2.1, "presence_penalty": "x", "repetition_penalty": -1,
               "logit_bias": {"99999999": 1}, "min_tokens": -1, "stop_token_ids": [-1],
               "prompt_logprobs": 21, "priority": "high", "cache_salt": 5, "kv_budget": 0}  # fmt: skip
        for field, value in bad.items():
            with self.subTest(field):
                self.refused(post(COMPLETIONS, completion(**{field: value})), 400, field)
        many = {str(i): 1 for i in range(100_000)}
        self.refused(post(COMPLETIONS, completion(logit_bias=many)), 400)
        self.works()


class Scoring(Case):
    """echo with logprobs, as lm-evaluation-harness's local-completions asks for it."""

    PROMPTS = [[5, 6, 7, 8, 9], [9, 10, 11]]

    def score(self, prompts, **fields):
        body = completion(prompts, max_tokens=1, echo=True, logprobs=1, seed=1234, **fields)
        return self.ok(post(COMPLETIONS, {**body, "ignore_eos": False}))["choices"]

    def test_each_prompt_token_has_its_logprob(self):
        for prompt, choice in zip(self.PROMPTS, self.score(self.PROMPTS), strict=True):
            logprobs = choice["logprobs"]
            self.assertEqual({len(v) for v in logprobs.values()}, {len(prompt) + 1})
            self.assertIsNone(logprobs["token_logprobs"][0])
            self.assertTrue(all(p <= 0 for p in logprobs["token_logprobs"][1:]))
            for token, top in list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))[1:]:
                self.assertIn(token, top)
                self.assertLessEqual(len(top), 2)

    def test_a_continuation_scores_what_it_was_generated_with(self):
        """Teacher forcing gives the bits of sampling."""
        body = completion(max_tokens=8, temperature=1.0, seed=3, logprobs=0, return_token_ids=True)
        made = self.ok(post(COMPLETIONS, body))["choices"][0]
        [scored] = self.score([[5, 6, 7, 8] + made["token_ids"]])
        self.assertEqual(scored["logprobs"]["token_logprobs"][4:-1], made["logprobs"]["token_logprobs"])

    def test_batches_change_no_bit(self):
        together = [c["logprobs"] for c in self.score(self.PROMPTS)]
        alone = [self.score([p])[0]["logprobs"] for p in self.PROMPTS]
        self.assertEqual(together, alone)

    def test_offsets_point_into_the_text(self):
        prompt = "In the beginning"
        body = completion(prompt, max_tokens=0, echo=True, logprobs=0)
        [choice] = self.ok(post(COMPLETIONS, body))["choices"]
        self.assertEqual(choice["text"], prompt)
        offsets = choice["logprobs"]["text_offset"]
        self.assertEqual(offsets, sorted(offsets))
        for token, offset in zip(choice["logprobs"]["tokens"], offsets, strict=True):
            if not token.startswith("bytes:") and not token.startswith("<"):
                self.assertTrue(prompt[offset:].startswith(token), (token, offset))

    def test_prompt_logprobs_agree_with_the_echo(self):
        body = completion(self.PROMPTS[0], max_tokens=0, prompt_logprobs=2)
        [choice] = self.ok(post(COMPLETIONS, body))["choices"]
        echoed = self.score([self.PROMPTS[0]])[0]["logprobs"]["token_logprobs"]
        self.assertIsNone(choice["prompt_logprobs"][0])
        for token, entry, logprob in zip(self.PROMPTS[0][1:], choice["prompt_logprobs"][1:], echoed[1:]):
            self.assertEqual(entry[str(token)]["logprob"], logprob)
            ranks = {e["rank"] for e in entry.values()}
            self.assertGreaterEqual(ranks, {1, 2})


class TokenIds(Case):
    def test_whole_and_streamed(self):
        for path, make in ((COMPLETIONS, completion), (CHAT, chat)):
            body = make(return_token_ids=True)
            whole = self.ok(post(path, body))
            self.assertEqual(len(token_ids(whole)), 8)
            prompt = (whole if path == CHAT else whole["choices"][0])["prompt_token_ids"]
            self.assertEqual(len(prompt), whole["usage"]["prompt_tokens"])
            streamed = [i for c in self.stream(path, body) for i in c["choices"][0].get("token_ids", [])]
            self.assertEqual(streamed, token_ids(whole))

    def test_continuous_usage(self):
        body = completion(stream_options={"include_usage": True, "continuous_usage_stats": True})
        chunks = self.stream(COMPLETIONS, body)
        counts = [c["usage"]["completion_tokens"] for c in chunks]
        self.assertEqual(counts, sorted(counts))
        self.assertEqual(counts[-1], 8)


class Tokenizing(Case):
    def test_round_trip(self):
        for prompt in ("In the beginning", "naïve café 🙂 日本語", ""):
            body = {"prompt": prompt, "add_special_tokens": False, "return_token_strs": True}
            reply = self.ok(post("/tokenize", body))
            self.assertEqual(reply["count"], len(reply["tokens"]))
            self.assertEqual(len(reply["token_strs"]), reply["count"])
            self.assertEqual(self.ok(post("/detokenize", {"tokens": reply["tokens"]})), {"prompt": prompt})

    def test_messages_count_as_the_chat_counts_them(self):
        usage = self.ok(post(CHAT, chat(max_tokens=1)))["usage"]
        reply = self.ok(post("/tokenize", {"messages": ASK}))
        self.assertEqual(reply["count"], usage["prompt_tokens"])
        if Options.max_context:
            self.assertEqual(reply["max_model_len"], Options.max_context)

    def test_refusals(self):
        self.refused(post("/tokenize", {}), 400, "prompt")
        self.refused(post("/tokenize", {"prompt": 5}), 400, "prompt")
        self.refused(post("/detokenize", {"tokens": [10**9]}), 400, "tokens")
        self.refused(post("/detokenize", {"tokens": "x"}), 400, "tokens")


class Embeddings(Case):
    def embed(self, given, **fields):
        return self.ok(post("/v1/embeddings", {"model": Options.model, "input": given, **fields}))

    def test_shape_and_length(self):
        reply = self.embed(["In the beginning", "And God said"])
        self.assertEqual(reply["object"], "list")
        self.assertEqual([d["index"] for d in reply["data"]], [0, 1])
        for entry in reply["data"]:
            self.assertAlmostEqual(math.hypot(*entry["embedding"]), 1, places=5)
        self.assertNotEqual(reply["data"][0]["embedding"], reply["data"][1]["embedding"])
        self.assertEqual(reply["usage"]["prompt_tokens"], reply["usage"]["total_tokens"])

    def test_batches_change_no_bit(self):
        inputs = [[5 + i] * (3 + 7 * i) for i in range(8)]
        together = [d["embedding"] for d in self.embed(inputs)["data"]]
        self.assertEqual(together, [self.embed(i)["data"][0]["embedding"] for i in inputs])

    def test_base64_and_dimensions(self):
        plain = self.embed("x")["data"][0]["embedding"]
        packed = base64.b64decode(self.embed("x", encoding_format="base64")["data"][0]["embedding"])
        self.assertEqual(list(struct.unpack(f"<{len(plain)}f", packed)),
                         [struct.unpack("<f", struct.pack("<f", v))[0] for v in plain])
        short = self.embed("x", dimensions=4)["data"][0]["embedding"]
        scale = math.hypot(*plain[:4])
        for a, b in zip(short, plain[:4], strict=True):
            self.assertAlmostEqual(a, b / scale, places=5)

    def test_refusals(self):
        for body, field in (({"input": ""}, "input"), ({}, "input"), ({"input": [10**9]}, "input"),
                            ({"input": "x", "dimensions": 10**6}, "dimensions"),
                            ({"input": "x", "encoding_format": "int8"}, "encoding_format")):  # fmt: skip
            self.refused(post("/v1/embeddings", {"model": Options.model, **body}), 400, field)
        self.works()


def named_events(path, body):
    """[(name, data)] of a stream whose events have names."""
    with Client() as client:
        response = client.start("POST", path, {**body, "stream": True})
        if response.status != 200:
            raise AssertionError(f"{response.status}: {response.read()[:500]}")
        blocks = response.read().decode().strip().split("\n\n")
    found = []
    for block in blocks:
        name, data = block.split("\n")
        found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


class Messages(Case):
    def body(self, **fields):
        return {"model": Options.model, "max_tokens": 12, "messages": ASK, "temperature": 0,
                "ignore_eos": True, **fields}  # fmt: skip

    def test_whole_and_streamed(self):
        whole = self.ok(post(MESSAGES, self.body()))
        self.assertEqual((whole["type"], whole["role"], whole["stop_reason"]), ("message", "assistant", "max_tokens"))
        self.assertEqual(whole["usage"]["output_tokens"], 12)
        events = named_events(MESSAGES, self.body())
        names = [n for n, _ in events]
        self.assertEqual(names[:2], ["message_start", "content_block_start"])
        self.assertEqual(names[-3:], ["content_block_stop", "message_delta", "message_stop"])
        text = "".join(d["delta"]["text"] for n, d in events if n == "content_block_delta")
        self.assertEqual(text, whole["content"][0]["text"])
        same = self.ok(post(CHAT, chat(max_tokens=12)))["choices"][0]["message"]["content"]
        self.assertEqual(text, same)

    def test_stop_sequences(self):
        full = self.ok(post(MESSAGES, self.body(max_tokens=24)))["content"][0]["text"]
        stop = full[len(full) // 2 :][:3]
        if len(stop) < 3 or "\ufffd" in stop:
            self.skipTest(f"the model's text gives no stop string: {full!r}")
        reply = self.ok(post(MESSAGES, self.body(max_tokens=24, stop_sequences=[stop])))
        self.assertEqual((reply["stop_reason"], reply["stop_sequence"]), ("stop_sequence", stop))
        self.assertEqual(reply["content"][0]["text"], full[: full.index(stop)])

    def test_count_tokens(self):
        counted = self.ok(post(MESSAGES + "/count_tokens", {"model": Options.model, "messages": ASK}))
        self.assertEqual(counted["input_tokens"], self.ok(post("/tokenize", {"messages": ASK}))["count"])

    def test_errors_have_anthropics_shape(self):
        cases = ((400, {"max_tokens": None}), (400, {"max_tokens": 0}), (400, {"messages": []}),
                 (400, {"tools": [{"name": "f"}]}), (404, {"model": "no-such-model"}))  # fmt: skip
        for status, fields in cases:
            reply = post(MESSAGES, self.body(**fields))
            self.assertEqual(reply.status, status, reply.body[:300])
            self.assertEqual(reply.json["type"], "error")
            self.assertEqual(set(reply.json["error"]), {"type", "message"})
        self.works()


class Responses(Case):
    def body(self, **fields):
        return {"model": Options.model, "input": "Say something.", "max_output_tokens": 12,
                "temperature": 0, "ignore_eos": True, **fields}  # fmt: skip

    def test_whole_and_streamed(self):
        whole = self.ok(post(RESPONSES, self.body()))
        self.assertEqual((whole["object"], whole["status"]), ("response", "incomplete"))
        text = whole["output"][0]["content"][0]["text"]
        self.assertEqual(text, self.ok(post(CHAT, chat(max_tokens=12)))["choices"][0]["message"]["content"])
        events = named_events(RESPONSES, self.body())
        self.assertEqual([d["sequence_number"] for _, d in events], list(range(len(events))))
        self.assertEqual((events[0][0], events[-1][0]), ("response.created", "response.incomplete"))
        self.assertEqual("".join(d["delta"] for n, d in events if n.endswith("text.delta")), text)
        self.assertEqual(events[-1][1]["response"]["output"][0]["content"], whole["output"][0]["content"])

    def test_it_keeps_nothing(self):
        self.refused(post(RESPONSES, self.body(store=True)), 400, "store")
        self.refused(post(RESPONSES, self.body(previous_response_id="resp_1")), 400, "previous_response_id")


class Version(Case):
    def test_version(self):
        with Client() as client:
            self.assertRegex(self.ok(client.get("/version"))["version"], r"^\d+\.\d+")
