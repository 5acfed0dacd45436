#!/usr/bin/env python3
"""Drives a running Cadre server with PyPI's `openai` package, unchanged.

    python3 tests/client/openai_client_test.py --base-url http://127.0.0.1:8000

Skips with exit code 77 and a line on standard error where the package is not installed.
"""

import json
import sys
import unittest

import cadre_http
from cadre_http import Options

try:
    import openai
except ImportError:
    print("SKIPPED: the Python package `openai` is not installed (pip install openai)", file=sys.stderr)
    sys.exit(77)

MESSAGES = [{"role": "user", "content": "Say something."}]
NO_EOS = {"ignore_eos": True}


class OpenAi(unittest.TestCase):
    def setUp(self):
        self.client = openai.OpenAI(
            base_url=f"{Options.base_url}/v1", api_key=Options.api_key or "none", max_retries=0
        )
        self.addCleanup(self.client.close)

    def complete(self, prompt="In the beginning", **fields):
        defaults = dict(model=Options.model, prompt=prompt, max_tokens=12, temperature=0)
        return self.client.completions.create(**{**defaults, "extra_body": NO_EOS, **fields})

    def chat(self, **fields):
        defaults = dict(model=Options.model, messages=MESSAGES, max_tokens=12, temperature=0)
        return self.client.chat.completions.create(**{**defaults, "extra_body": NO_EOS, **fields})

    def test_models(self):
        self.assertIn(Options.model, [m.id for m in self.client.models.list()])
        self.assertEqual(self.client.models.retrieve(Options.model).id, Options.model)

    def test_completion(self):
        reply = self.complete(prompt=[5, 6, 7])
        self.assertEqual(reply.object, "text_completion")
        self.assertEqual(reply.choices[0].finish_reason, "length")
        usage = reply.usage
        self.assertEqual((usage.prompt_tokens, usage.completion_tokens, usage.total_tokens), (3, 12, 15))

    def test_chat(self):
        reply = self.chat(max_tokens=openai.NOT_GIVEN, max_completion_tokens=7)
        self.assertEqual(reply.object, "chat.completion")
        self.assertEqual(reply.choices[0].message.role, "assistant")
        self.assertTrue(reply.choices[0].message.content)
        self.assertEqual(reply.choices[0].finish_reason, "length")
        self.assertEqual(reply.usage.completion_tokens, 7)

    def test_completion_stream_equals_the_whole(self):
        for temperature in (0, 1.0):
            expected = self.complete(temperature=temperature, seed=9).choices[0]
            chunks = list(self.complete(temperature=temperature, seed=9, stream=True))
            self.assertEqual("".join(c.choices[0].text for c in chunks), expected.text)
            reasons = [c.choices[0].finish_reason for c in chunks]
            self.assertEqual([r for r in reasons if r], [expected.finish_reason])

    def test_chat_stream_equals_the_whole(self):
        for temperature in (0, 1.0):
            expected = self.chat(temperature=temperature, seed=9).choices[0]
            stream = self.chat(
                temperature=temperature, seed=9, stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            deltas = [c.choices[0].delta for c in chunks if c.choices]
            self.assertEqual("".join(d.content or "" for d in deltas), expected.message.content)
            self.assertEqual(deltas[0].role, "assistant")
            self.assertTrue(all(d.role is None for d in deltas[1:]))
            self.assertEqual(len({c.id for c in chunks}), 1)
            self.assertEqual(chunks[-1].choices, [])
            self.assertEqual(chunks[-1].usage.completion_tokens, 12)

    def test_the_streaming_helper_assembles_the_message(self):
        expected = self.chat().choices[0].message.content
        assembled = ""
        with self.chat(stream=True) as stream:
            for chunk in stream:
                assembled += chunk.choices[0].delta.content or ""
        self.assertEqual(assembled, expected)

    def test_logprobs(self):
        logprobs = self.complete(logprobs=5).choices[0].logprobs
        self.assertEqual(len(logprobs.token_logprobs), 12)
        self.assertTrue(all(p <= 0 for p in logprobs.token_logprobs))
        self.assertTrue(all(len(t) >= 1 for t in logprobs.top_logprobs))
        content = self.chat(logprobs=True, top_logprobs=3).choices[0].logprobs.content
        self.assertEqual(len(content), 12)
        for entry in content:
            self.assertEqual(len(entry.top_logprobs), 3)
            self.assertEqual(entry.logprob, entry.top_logprobs[0].logprob)

    def test_seed(self):
        texts = [self.complete(temperature=1.0, seed=s).choices[0].text for s in (1, 1, 2, 3, 4)]
        self.assertEqual(texts[0], texts[1])
        self.assertGreater(len(set(texts)), 1)

    def test_n(self):
        reply = self.chat(n=3, temperature=1.0, seed=3)
        self.assertEqual([c.index for c in reply.choices], [0, 1, 2])
        self.assertEqual(reply.usage.completion_tokens, 36)

    def test_stop(self):
        full = self.complete(max_tokens=24).choices[0].text
        stop = full[len(full) // 2 :][:3]
        if len(stop) < 3 or "\ufffd" in stop:
            self.skipTest(f"the model's text gives no stop string: {full!r}")
        choice = self.complete(max_tokens=24, stop=[stop]).choices[0]
        self.assertEqual((choice.text, choice.finish_reason), (full[: full.index(stop)], "stop"))
        streamed = self.complete(max_tokens=24, stop=[stop], stream=True)
        self.assertEqual("".join(c.choices[0].text for c in streamed), choice.text)

    def test_errors_are_the_typed_exceptions(self):
        cases = (
            (openai.BadRequestError, lambda: self.complete(logprobs=21)),
            (openai.BadRequestError, lambda: self.chat(logprobs=True, top_logprobs=21)),
            (openai.BadRequestError, lambda: self.complete(temperature=-1)),
            (openai.BadRequestError, lambda: self.complete(max_tokens=2**30)),
            (openai.BadRequestError, lambda: self.chat(messages=[])),
            (openai.BadRequestError, lambda: self.complete(stop=list("abcde"))),
            (openai.BadRequestError, lambda: self.complete(stream=True, temperature=-1)),
            (openai.NotFoundError, lambda: self.complete(model="no-such-model")),
            (openai.NotFoundError, lambda: self.chat(model="no-such-model")),
        )
        for number, (kind, call) in enumerate(cases):
            with self.subTest(number), self.assertRaises(kind) as caught:
                call()
            self.assertTrue(caught.exception.body["message"])
        self.assertEqual(self.complete().usage.completion_tokens, 12)

    def test_sampling_fields(self):
        steered = self.complete(logit_bias={"7": 100}, extra_body={**NO_EOS, "return_token_ids": True})
        self.assertEqual(steered.choices[0].model_extra["token_ids"], [7] * 12)
        reply = self.chat(frequency_penalty=1.5, presence_penalty=-0.5, user="me", metadata={"a": "b"})
        self.assertEqual(reply.usage.completion_tokens, 12)

    def test_echo_scores_the_prompt(self):
        choice = self.complete(prompt=[5, 6, 7], echo=True, logprobs=1, max_tokens=1).choices[0]
        self.assertEqual(len(choice.logprobs.tokens), 4)
        self.assertIsNone(choice.logprobs.token_logprobs[0])

    def test_embeddings(self):
        # The client asks for base64 by itself and unpacks it.
        data = self.client.embeddings.create(model=Options.model, input=["a b", "c"]).data
        plain = self.client.embeddings.create(model=Options.model, input=["a b"], encoding_format="float").data
        self.assertEqual([d.index for d in data], [0, 1])
        self.assertAlmostEqual(sum(v * v for v in data[0].embedding), 1, places=4)
        for a, b in zip(data[0].embedding, plain[0].embedding, strict=True):
            self.assertAlmostEqual(a, b, places=6)

    def respond(self, **fields):
        defaults = dict(model=Options.model, input="Say something.", max_output_tokens=12, temperature=0)
        return self.client.responses.create(**{**defaults, "extra_body": NO_EOS, **fields})

    def test_responses(self):
        expected = self.chat().choices[0].message.content
        reply = self.respond()
        self.assertEqual((reply.output_text, reply.status), (expected, "incomplete"))
        self.assertEqual(reply.incomplete_details.reason, "max_output_tokens")
        self.assertEqual(reply.usage.output_tokens, 12)
        events = list(self.respond(stream=True))
        self.assertEqual(events[0].type, "response.created")
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), expected)
        self.assertEqual(events[-1].response.output_text, expected)
        with self.client.responses.stream(model=Options.model, input="Say something.", max_output_tokens=5,
                                          temperature=0, extra_body=NO_EOS) as stream:  # fmt: skip
            self.assertTrue([e.type for e in stream])

    def test_responses_of_a_schema(self):
        schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
                  "additionalProperties": False}  # fmt: skip
        text = {"format": {"type": "json_schema", "name": "answer", "schema": schema, "strict": True}}
        reply = self.client.responses.create(model=Options.model, input="Say something.", text=text)
        self.assertEqual([*json.loads(reply.output_text)], ["a"])

    def test_wrong_key(self):
        if not Options.api_key:
            self.skipTest("the server has no key (--api-key)")
        other = self.client.with_options(api_key="wrong")
        with self.assertRaises(openai.AuthenticationError):
            other.models.list()


if __name__ == "__main__":
    unittest.main(argv=cadre_http.parse(__doc__.splitlines()[0]))
