"""Texts of the form asked for: parse, match, repeat; forms that cannot be are refused, and the server goes on."""

import json
import re

from cadre_http import Case, chat, completion, joined, post

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
}
REFUSED = {
    "guided_json": (
        {"type": "array", "maxItems": 10**9},
        {"type": "string", "minLength": 10**12},
        {"not": {}, "properties": {"a": {"not": {"type": "null"}}}},
        {"$ref": "#"},
        {"$ref": "#/nowhere"},
        {"type": "string", "pattern": "(a)\\1"},
        "{",
        5,
    ),
    "guided_regex": ("(", "(?=a)", "(.*a.{90}){90}", "a{999999}", 5),
    "guided_grammar": ("root ::= root", "x ::= \"a\"", "root ::= " + "(" * 999, 5),
    "guided_choice": ([], [1], "a", [""]),
}


class Forms(Case):
    def text(self, path, make, **fields):
        """A whole text, streamed and not; None where max_tokens cut it."""
        body = make(max_tokens=120, ignore_eos=None, **fields)
        choice = self.ok(post(path, body))["choices"][0]
        text = choice["message"]["content"] if path == CHAT else choice["text"]
        self.assertEqual(joined(self.stream(path, body)), text)
        return text if choice["finish_reason"] == "stop" else None

    def test_regular_expressions(self):
        for pattern in ("[a-f]{3}-[0-9]{2,4}", "(yes|no)( indeed)?", "\\d{4}-\\d\\d"):
            for path, make in ((COMPLETIONS, completion), (CHAT, chat)):
                for seed in range(3):
                    text = self.text(path, make, guided_regex=pattern, seed=seed, temperature=1.5)
                    self.assertRegex(text, re.compile(f"^({pattern})$"))

    def test_schemas(self):
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
        whole = 0
        for seed in range(8):
            text = self.text(CHAT, chat, response_format=form, seed=seed, temperature=1)
            if text is None:
                continue
            whole += 1
            person = json.loads(text)
            self.assertEqual(list(person), ["name", "age", "tags"])
            self.assertLessEqual(len(person["name"]), 6)
            self.assertIn(person["age"], range(131))
            self.assertLessEqual(set(person["tags"]), {"a", "b"})
        self.assertGreater(whole, 0)

    def test_choices_and_grammars(self):
        for seed in range(4):
            self.assertIn(self.text(COMPLETIONS, completion, guided_choice=["left", "right"], seed=seed),
                          ("left", "right"))  # fmt: skip
            text = self.text(COMPLETIONS, completion, grammar='root ::= "(" root ")" | [0-9]', seed=seed)
            self.assertRegex(text or "(1)", r"^\(*[0-9]\)*$")

    def test_ends_without_end_of_sequence(self):
        reply = self.ok(post(COMPLETIONS, completion(max_tokens=50, guided_regex="abc")))
        self.assertEqual((reply["choices"][0]["text"], reply["choices"][0]["finish_reason"]), ("abc", "stop"))

    def test_what_cannot_be_is_refused_by_name(self):
        for field, values in REFUSED.items():
            for value in values:
                with self.subTest(field=field, value=str(value)[:80]):
                    self.refused(post(COMPLETIONS, completion() | {field: value}), 400, field)
        self.refused(post(CHAT, chat() | {"response_format": {"type": "xml"}}), 400, "response_format")
        self.works()
