#!/usr/bin/env python3
"""Drives a running Cadre server with PyPI's `anthropic` package, unchanged.

    python3 tests/client/anthropic_client_test.py --base-url http://127.0.0.1:8000

Skips with exit code 77 and a line on standard error where the package is not installed.
"""

import sys
import unittest

import cadre_http
from cadre_http import Options

try:
    import anthropic
except ImportError:
    print("SKIPPED: the Python package `anthropic` is not installed (pip install anthropic)", file=sys.stderr)
    sys.exit(77)

MESSAGES = [{"role": "user", "content": "Say something."}]


class Anthropic(unittest.TestCase):
    def setUp(self):
        self.client = anthropic.Anthropic(
            base_url=Options.base_url, api_key=Options.api_key or "none", max_retries=0
        )
        self.addCleanup(self.client.close)

    def arguments(self, **fields):
        # Some versions of the package have no temperature of their own.
        return {"model": Options.model, "messages": MESSAGES, "max_tokens": 12,
                "extra_body": {"ignore_eos": True, "temperature": 0}, **fields}  # fmt: skip

    def create(self, **fields):
        return self.client.messages.create(**self.arguments(**fields))

    def test_message(self):
        reply = self.create(system="Be brief.")
        self.assertEqual((reply.type, reply.role, reply.stop_reason), ("message", "assistant", "max_tokens"))
        self.assertEqual(reply.usage.output_tokens, 12)
        self.assertEqual(reply.content[0].type, "text")

    def test_the_streaming_helper_assembles_the_message(self):
        expected = self.create()
        with self.client.messages.stream(**self.arguments()) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, expected.content[0].text)
        self.assertEqual(final.content[0].text, text)
        self.assertEqual((final.stop_reason, final.usage.output_tokens), ("max_tokens", 12))

    def test_count_tokens(self):
        counted = self.client.messages.count_tokens(model=Options.model, messages=MESSAGES).input_tokens
        usage = self.create().usage
        self.assertEqual(counted, usage.input_tokens + usage.cache_read_input_tokens)

    def test_errors_are_the_typed_exceptions(self):
        cases = (
            (anthropic.BadRequestError, lambda: self.create(max_tokens=0)),
            (anthropic.BadRequestError, lambda: self.create(messages=[])),
            (anthropic.NotFoundError, lambda: self.create(model="no-such-model")),
        )
        for number, (kind, call) in enumerate(cases):
            with self.subTest(number), self.assertRaises(kind) as caught:
                call()
            self.assertEqual(caught.exception.body["type"], "error")


if __name__ == "__main__":
    unittest.main(argv=cadre_http.parse(__doc__.splitlines()[0]))
