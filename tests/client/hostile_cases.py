"""What ill-formed requests get: the right status, the error body, and a server that goes on."""

import http.client
import json
import socket

from cadre_http import (TIMEOUT, Case, Client, Options, address, chat, completion, post, raw,
                        status_of)  # fmt: skip

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"

# Known fields of the surface that the first server may not have: each is 400 and named, never
# silently dropped. --built takes names off this list.
UNBUILT = {
    "suffix": "x",
    "best_of": 7,
    "use_beam_search": True,
    "bad_words": ["x"],
    "allowed_token_ids": [5],
    "typical_p": 0.9,
    "mirostat": 2,
    "dry_multiplier": 0.8,
    "xtc_probability": 0.5,
    "n_probs": 5,
    "repeat_penalty": 1.1,
    "spaces_between_special_tokens": False,
    "return_tokens_as_token_ids": True,
    "store": True,
    "include_stop_str_in_output": True,
}
UNBUILT_CHAT = {
    "functions": [{"name": "f", "parameters": {"type": "object"}}],
}

BAD_VALUES = {
    "temperature": (-1, "hot", [1], 1e400),
    "top_p": (0, 1.5, -0.1, "x"),
    "min_p": (-0.1, 1.1),
    "top_k": (-2, 1.5, "x"),
    "n": (0, -1, 2**31, 2**70, 1.5, "2"),
    "max_tokens": (-1, 1.5, "8", 2**31, 2**70),
    "seed": ("x", 1.5, [1]),
    "stop": (5, [5], {"a": 1}, [["a"]]),
    "stream": ("yes", 1),
    "ignore_eos": ("yes",),
    "echo": (1,),
    "return_token_ids": ("yes",),
    "add_special_tokens": (1,),
}


class Fields(Case):
    def test_bad_values_name_the_field(self):
        for field, values in BAD_VALUES.items():
            for value in values:
                with self.subTest(field=field, value=value):
                    body = json.dumps({**completion(), field: value}).encode()  # 1e400: Infinity
                    self.refused(post(COMPLETIONS, body), 400, field if value != 1e400 else "")
        self.works()

    def test_known_but_unbuilt_fields_are_refused_by_name(self):
        cases = [(COMPLETIONS, completion, f, v) for f, v in UNBUILT.items()]
        cases += [(CHAT, chat, f, v) for f, v in UNBUILT_CHAT.items()]
        for path, make, field, value in cases:
            if field in Options.built:
                continue
            with self.subTest(field):
                self.refused(post(path, make(**{field: value})), 400, field)

    def test_prompts(self):
        bad = ([], [[]], [5, "a"], [["a"]], [-1], [10**9], [2**70], [1.5], 5, {"a": 1}, [None], [[5], "a"])
        for prompt in bad:
            with self.subTest(prompt=prompt):
                self.refused(post(COMPLETIONS, {**completion(), "prompt": prompt}), 400)
        body = completion()
        del body["prompt"]
        self.refused(post(COMPLETIONS, body), 400, "prompt")
        self.refused(post(COMPLETIONS, {**body, "prompt": None}), 400)
        self.works()

    def test_messages(self):
        good = {"role": "user", "content": "hi"}
        bad = (
            [],
            "hi",
            [5],
            [{"content": "hi"}],
            [{"role": "user"}],
            [{"role": 5, "content": "hi"}],
            [{"role": "user", "content": 5}],
            [good, {"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            [{"role": "user", "content": ["hi"]}],
        )
        for messages in bad:
            with self.subTest(messages=messages):
                self.refused(post(CHAT, chat() | {"messages": messages}), 400)
        body = chat()
        del body["messages"]
        self.refused(post(CHAT, body), 400, "messages")
        self.works()

    def test_the_template_comes_from_the_model_folder(self):
        for kwargs in ({"chat_template": "{{ messages }}"}, {"chat_template": ""}):
            self.refused(post(CHAT, chat(chat_template_kwargs=kwargs)), 400, "chat_template")
        self.refused(post(CHAT, chat(chat_template="{{ messages }}")), 400, "chat_template")

    def test_special_strings_in_user_text_stay_text(self):
        def count(text):
            return self.ok(post(CHAT, chat(text, max_tokens=1)))["usage"]["prompt_tokens"]

        plain = count("x")
        for special in ("<|endoftext|>", "<|im_end|>", "</s>", "<|eot_id|>"):
            with self.subTest(special):
                self.assertGreater(count("x" + special), plain + 1, "read as one control token")

    def test_amplification_is_bounded(self):
        replies = (
            post(COMPLETIONS, completion(prompt=[[5]] * 300_000)),
            post(COMPLETIONS, completion(prompt=[[5]] * 1_000_000)),
            post(COMPLETIONS, completion(prompt=["a"] * 1_000_000)),
            post("/v1/embeddings", {"model": Options.model, "input": ["a"] * 1_000_000}),
            post(CHAT, chat(tools=[{"type": "function", "function": {
                "name": "f", "parameters": {"enum": list(range(100_000))}}}])),
            post(COMPLETIONS, completion(n=100_000)),
            post(COMPLETIONS, completion(stop=["a" * 1_000_000])),
        )
        for reply in replies:
            self.assertIn(reply.status, (400, 413), reply.body[:300])
        self.works()

    def test_over_long_prompts(self):
        size = max(2 * Options.max_context, 100_000)
        for body in (completion([5] * size), completion("word " * size)):
            reply = post(COMPLETIONS, body)
            self.assertIn(reply.status, (400, 413), reply.body[:300])
        if Options.max_context:
            limit = completion([5] * (Options.max_context + 1))
            self.refused(post(COMPLETIONS, limit), 400)
        self.works()


class Routes(Case):
    def test_unknown_model(self):
        self.refused(post(COMPLETIONS, completion(model="no-such-model")), 404, "no-such-model")
        self.refused(post(CHAT, chat(model="../../etc/passwd")), 404)
        self.refused(post(CHAT, chat() | {"model": 5}), 400, "model")

    def test_unknown_paths(self):
        paths = ("/v1", "/v1/nothing", "/../../etc/passwd", "/v1/%2e%2e/%2e%2e/etc/passwd",
                 "/v1/completions/../../etc/passwd", "/v1/models%00", "//v1//completions")  # fmt: skip
        for path in paths:
            with self.subTest(path), Client() as client:
                reply = client.get(path)
                self.assertIn(reply.status, (400, 404), reply.body[:200])
                self.assertNotIn(b"root:", reply.body)
        with Client() as client:
            self.refused(client.get("/v1/nothing"), 404)

    def test_methods(self):
        for path in (COMPLETIONS, CHAT):
            for method in ("GET", "PUT", "DELETE"):
                with self.subTest(method=method, path=path), Client() as client:
                    self.refused(client.send(method, path), 405)
        with Client() as client:
            self.refused(client.post("/v1/models", {}), 405)

    def test_query_strings_do_not_change_the_route(self):
        self.ok(post(COMPLETIONS + "?a=b", completion(max_tokens=1)))

    def test_keys(self):
        if not Options.api_key:
            self.skipTest("the server has no key (--api-key)")
        for header in ({"Authorization": "Bearer wrong"}, {"Authorization": ""}):
            for path, make in ((COMPLETIONS, completion), (CHAT, chat)):
                self.refused(post(path, make(), header), 401)
            with Client() as client:
                self.refused(client.send("GET", "/v1/models", headers=header), 401)
                self.assertEqual(client.send("GET", "/health", headers=header).status, 200)
        by_other_header = {"Authorization": "", "X-Api-Key": Options.api_key}
        self.ok(post(COMPLETIONS, completion(max_tokens=1), by_other_header))


class Json(Case):
    def test_malformed_json(self):
        good = json.dumps(completion()).encode()
        bad = (
            b"", b"{", b"null", b"[]", b"5", b'"x"', b"{}x", good[:-1], good + b"}", b"\x00" + good,
            b"{'prompt': 'a'}", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b'{"prompt": "a\nb"}',
            b"[" * 100_000, b'{"a":' * 100_000, b'{"prompt": "\\x"}', b'{"prompt": 01}',
        )  # fmt: skip
        for body in bad:
            for path in (COMPLETIONS, CHAT):
                with self.subTest(body=body[:40], path=path):
                    self.refused(post(path, body), 400)
        self.works()

    def test_invalid_utf8(self):
        head = b'{"model": ' + json.dumps(Options.model).encode() + b', "max_tokens": 1, '
        sequences = (b"\xff", b"\xc3(", b"\xe2\x82", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\xaf")
        for sequence in sequences:
            with self.subTest(sequence):
                text = b'"a' + sequence + b'b"'
                self.refused(post(COMPLETIONS, head + b'"prompt": ' + text + b"}"), 400)
                message = b'"messages": [{"role": "user", "content": ' + text + b"}]}"
                self.refused(post(CHAT, head + message), 400)
        self.works()


def unfinished_body():
    """One byte of a hundred, from a client with the key: a stranger's body is not read."""
    key = f"Authorization: Bearer {Options.api_key}\r\n" if Options.api_key else ""
    return f"POST /v1/completions HTTP/1.1\r\nHost: x\r\n{key}Content-Length: 100\r\n\r\n{{".encode()


class Http(Case):
    def request(self, head, body=b""):
        return status_of(raw(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body))

    def test_malformed_requests_are_400_or_closed(self):
        host = b"POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        heads = (
            b"nonsense",
            b"GET",
            b"GET /health HTTP/9.9\nHost: x",
            b"GET /hea\x00lth HTTP/1.1\nHost: x",
            b"G\x01T /health HTTP/1.1\nHost: x",
            host + b"Content-Length: -5",
            host + b"Content-Length: 5x",
            host + b"Content-Length: 99999999999999999999999",
            host + b"Content-Length: 2\nContent-Length: 3",
            host + b"Bad Header: x\nContent-Length: 2",
        )
        for head in heads:
            with self.subTest(head=head):
                self.assertIn(self.request(head, b"{}"), (0, 400, 413, 501, 505))
        self.works()

    def test_both_length_and_chunks_are_refused(self):
        head = (
            b"POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n"
            b"Content-Length: 4\nTransfer-Encoding: chunked"
        )
        self.assertEqual(self.request(head, b"0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n"), 400)
        self.works()

    def test_chunked_bodies(self):
        body = json.dumps(completion(max_tokens=1)).encode()
        key = f"Authorization: Bearer {Options.api_key}\n".encode() if Options.api_key else b""
        head = b"POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n" + key
        head += b"Connection: close\nTransfer-Encoding: chunked"
        cut = len(body) // 2
        parts = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:cut], body[cut:], b""))
        self.assertEqual(self.request(head, parts), 200)
        self.assertIn(self.request(head, b"zz\r\n{}\r\n0\r\n\r\n"), (0, 400))
        self.assertIn(self.request(head, b"ffffffffffffffffff\r\n{}"), (0, 400, 413))
        self.works()

    def test_huge_headers(self):
        head = b"GET /health HTTP/1.1\nHost: x\nX-Long: " + b"a" * 2_000_000
        self.assertIn(self.request(head), (0, 400, 413, 431))
        many = b"GET /health HTTP/1.1\nHost: x" + b"".join(b"\nX-%d: a" % i for i in range(100_000))
        self.assertIn(self.request(many), (0, 400, 413, 431))
        self.works()

    def test_oversized_bodies_are_refused_while_reading(self):
        head = b"POST /v1/completions HTTP/1.1\nHost: x\nContent-Type: application/json\n"
        announced = head + b"Content-Length: 10000000000"  # refused before it is sent
        self.assertEqual(self.request(announced, b'{"prompt": "'), 413)
        self.works()

    def test_a_body_cut_short_harms_nobody(self):
        with socket.create_connection(address(), timeout=TIMEOUT) as sock:
            sock.sendall(unfinished_body())
        self.works()

    def test_a_slow_header_meets_a_deadline(self):
        if not Options.slow:
            self.skipTest("waits for the header deadline (--slow)")
        received = raw(b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: ", timeout=TIMEOUT)
        self.assertIn(status_of(received), (0, 408))

    def test_a_slow_body_meets_a_deadline(self):
        if not Options.slow:
            self.skipTest("waits for the body deadline (--slow)")
        self.assertIn(status_of(raw(unfinished_body(), timeout=TIMEOUT)), (0, 408))

    def test_idle_connections_block_nobody(self):
        idle = [socket.create_connection(address(), timeout=TIMEOUT) for _ in range(200)]
        try:
            self.works()
        finally:
            for sock in idle:
                sock.close()

    def test_http_1_0(self):
        connection = http.client.HTTPConnection(*address(), timeout=TIMEOUT)
        connection._http_vsn, connection._http_vsn_str = 10, "HTTP/1.0"
        connection.request("GET", "/health")
        self.assertEqual(connection.getresponse().status, 200)
        connection.close()
