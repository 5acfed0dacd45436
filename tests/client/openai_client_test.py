#!/usr/bin/env python3
"""Drives a running Cadre server with PyPI's `openai` package, unchanged.

    python3 tests/client/openai_client_test.py --base-url http://127.0.0.1:8000

Skips with exit code 77 and a line on standard error where the package is not installed.
"""

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

    def test_wrong_key(self):
        if not Options.api_key:
            self.skipTest("the server has no key (--api-key)")
        other = self.client.with_options(api_key="wrong")
        with self.assertRaises(openai.AuthenticationError):
            other.models.list()


if __name__ == "__main__":
    unittest.main(argv=cadre_http.parse(__doc__.splitlines()[0]))
