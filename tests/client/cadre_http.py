"""Requests to a running server and assertions that the raw HTTP tests share. Standard library only."""

import argparse
import http.client
import json
import socket
import sys
import unittest
import urllib.parse

TIMEOUT = 120  # seconds; a bound against hanging, not a measure


class Options:
    """Where the server is and what is known about it; filled by `parse` before the tests run."""

    base_url = metrics_url = api_key = model = None
    max_context = 0
    built = frozenset()
    slow = False


def parse(description):
    """Reads the flags into Options and returns what is left for unittest."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--base-url", required=True, help="such as http://127.0.0.1:8000")
    parser.add_argument("--metrics-url", help="where /metrics is (default: --base-url)")
    parser.add_argument("--api-key", help="the key that the server was started with")
    parser.add_argument("--model", help="default: the first of /v1/models")
    parser.add_argument("--max-context", type=int, default=0, help="default: max_model_len of /v1/models")
    parser.add_argument("--built", default="", help="fields of UNBUILT that the server has by now: a,b")
    parser.add_argument("--slow", action="store_true", help="also tests that wait for deadlines")
    args, rest = parser.parse_known_args()
    Options.base_url = args.base_url.rstrip("/").removesuffix("/v1")
    Options.metrics_url = (args.metrics_url or Options.base_url).rstrip("/")
    Options.api_key, Options.slow = args.api_key, args.slow
    Options.built = frozenset(filter(None, args.built.split(",")))
    entry = Client().get("/v1/models").json["data"][0]
    Options.model = args.model or entry["id"]
    Options.max_context = args.max_context or entry.get("max_model_len") or 0
    return [sys.argv[0], *rest]


class Reply:
    def __init__(self, response, body):
        self.status, self.headers, self.body = response.status, response.headers, body

    @property
    def json(self):
        return json.loads(self.body.decode("utf-8"))


def address(url=None):
    parts = urllib.parse.urlsplit(url or Options.base_url)
    return parts.hostname, parts.port or 80


class Client:
    """One connection; requests on it follow each other (keep-alive)."""

    def __init__(self, url=None):
        self.connection = http.client.HTTPConnection(*address(url), timeout=TIMEOUT)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.connection.close()

    def start(self, method, path, body=None, headers=None):
        """Sends a request; `body` is JSON to be, or bytes as they are."""
        headers = dict(headers or {})
        if Options.api_key and "Authorization" not in headers:
            headers["Authorization"] = f"Bearer {Options.api_key}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        if body is not None:
            headers.setdefault("Content-Type", "application/json")
        self.connection.request(method, path, body, headers)
        return self.connection.getresponse()

    def send(self, method, path, body=None, headers=None):
        response = self.start(method, path, body, headers)
        return Reply(response, response.read())

    def get(self, path):
        return self.send("GET", path)

    def post(self, path, body, headers=None):
        return self.send("POST", path, body, headers)


def post(path, body, headers=None):
    with Client() as client:
        return client.post(path, body, headers)


def completion(prompt=(5, 6, 7, 8), **fields):
    """A completions body: greedy, 8 tokens, no early end, unless `fields` say otherwise."""
    prompt = list(prompt) if isinstance(prompt, tuple) else prompt
    defaults = dict(model=Options.model, prompt=prompt, max_tokens=8, temperature=0, ignore_eos=True)
    return without_none({**defaults, **fields})


def chat(content="Say something.", **fields):
    messages = [{"role": "user", "content": content}]
    defaults = dict(model=Options.model, messages=messages, max_tokens=8, temperature=0, ignore_eos=True)
    return without_none({**defaults, **fields})


def without_none(body):
    return {k: v for k, v in body.items() if v is not None}


def raw(data, limit=1 << 16, timeout=30):
    """Sends bytes as they are on a fresh socket; the reply's bytes until the server closes, an
    answer is complete, or the time is up (then AssertionError)."""
    with socket.create_connection(address(), timeout=timeout) as sock:
        received = b""
        try:
            sock.sendall(data)
            while len(received) < limit:
                part = sock.recv(4096)
                if not part:
                    break
                received += part
                if complete(received):
                    break
        except (ConnectionResetError, BrokenPipeError):
            pass  # closing on nonsense is an answer
        except TimeoutError as error:
            raise AssertionError(f"no answer to {data[:80]!r} in {timeout} s") from error
        return received


def complete(received):
    head, separator, body = received.partition(b"\r\n\r\n")
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return bool(separator) and len(body) >= int(line.split(b":")[1])
    return False


def status_of(received):
    """Status code of raw reply bytes, or 0 where the server just closed."""
    line = received.split(b"\r\n", 1)[0].split()
    return int(line[1]) if len(line) > 1 and line[0].startswith(b"HTTP/1.") else 0


def events(response):
    """The `data:` payloads of an event stream, in order, until the server ends it."""
    for line in response:
        if line.startswith(b"data:"):
            yield line[5:].strip().decode("utf-8")


def metrics():
    """Samples of /metrics: {name{labels}: value}."""
    with Client(Options.metrics_url) as client:
        reply = client.get("/metrics")
    if reply.status != 200:
        raise AssertionError(f"/metrics answers {reply.status}")
    samples = {}
    for line in reply.body.decode().splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            samples[name] = float(value)
    return samples


def total(samples, name):
    """Sum over the label sets of a counter or gauge, whether or not it ends in _total."""
    names = (f"cadre_{name}", f"cadre_{name}_total")
    found = [v for k, v in samples.items() if k.split("{")[0] in names]
    if not found:
        raise AssertionError(f"no metric cadre_{name} or cadre_{name}_total")
    return sum(found)


class Case(unittest.TestCase):
    """Assertions on replies."""

    maxDiff = 2000

    def ok(self, reply):
        self.assertEqual(reply.status, 200, reply.body[:500])
        return reply.json

    def refused(self, reply, status, mentions=""):
        """An error reply of that status with the body that clients parse."""
        self.assertEqual(reply.status, status, reply.body[:500])
        self.assertIn("application/json", reply.headers.get("Content-Type", ""))
        error = reply.json["error"]
        self.assertGreaterEqual(set(error), {"message", "type", "param", "code"})
        self.assertIsInstance(error["message"], str)
        self.assertTrue(error["message"])
        if mentions:
            self.assertIn(mentions, f"{error['message']} {error['param']}")
        return error

    def works(self):
        """The server still answers a real request."""
        self.ok(post("/v1/completions", completion(max_tokens=1)))

    def stream(self, path, body):
        """Chunks of a streamed reply; checks the framing that all streams share."""
        with Client() as client:
            response = client.start("POST", path, {**body, "stream": True})
            if response.status != 200:
                self.fail(f"{response.status}: {response.read()[:500]}")
            self.assertIn("text/event-stream", response.headers["Content-Type"])
            payloads = list(events(response))
        self.assertEqual(payloads[-1], "[DONE]")
        self.assertEqual(payloads.count("[DONE]"), 1)
        chunks = [json.loads(p) for p in payloads[:-1]]
        self.assertTrue(chunks)
        for key in ("id", "object", "created", "model"):
            self.assertEqual(len({c[key] for c in chunks}), 1, f"{key} changes in a stream")
        return chunks


def joined(chunks, index=0):
    """Text of one choice, of completions or chat chunks."""
    parts = []
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] == index:
                delta = choice.get("delta")
                parts.append((delta.get("content") if delta is not None else choice["text"]) or "")
    return "".join(parts)
