#!/usr/bin/env python3
"""Thousands of open streams, idle sockets, slow readers and resets on one server: no request fails, memory
stays bounded, and nothing is left in the KV cache. Standard library only.

    python3 tests/e2e/load_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]

--all opens 4,000 streams beside 1,000 idle sockets; else a tenth of that.
"""

import collections
import json
import re
import resource
import selectors
import socket
import struct
import time
import unittest

import e2e
from e2e import Options, serving, wait_until

CONTEXT = 1024
# Resident memory that one connection may take, its stream, its request in the queue and all.
BYTES_PER_CONNECTION = 96 << 10


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=20", "eval.interval=0")
    Options.folder, Options.model = shop.folder, shop.model(run, "model")
    Options.streams, Options.idle = (4000, 1000) if Options.long else (400, 100)
    # This process and the server, which inherits the limit, need as many descriptors each.
    needed = Options.streams + Options.idle + 200
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard < needed:
        raise AssertionError(f"the limit of open files is {hard}, {needed} are needed: ulimit -n {needed}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def metric(server, name):
    connection = e2e.http.client.HTTPConnection("127.0.0.1", server.port, timeout=e2e.TIMEOUT)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    finally:
        connection.close()
    found = re.findall(rf"^{name} (\S+)$", text, re.M)
    return float(found[0]) if found else 0.0


def memory(server, field):
    """Bytes of a field of the process's status."""
    with open(f"/proc/{server.pid}/status", encoding="ascii") as file:
        return int(re.search(rf"{field}:\s+(\d+) kB", file.read()).group(1)) << 10


def connect(port, receive_buffer=0):
    sock = socket.socket()
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.settimeout(e2e.TIMEOUT)
    sock.connect(("127.0.0.1", port))
    return sock


def reset(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


class Stream:
    """One streamed completion; `piece` bytes are read at a time."""

    def __init__(self, port, tokens, piece=65536, reset_after=None):
        self.tokens, self.piece, self.reset_after = tokens, piece, reset_after
        self.received, self.done = bytearray(), False
        body = json.dumps({"prompt": [5, 6, 7], "max_tokens": tokens, "ignore_eos": True, "stream": True,
                           "stream_options": {"include_usage": True}}).encode()  # fmt: skip
        self.sock = connect(port, 4096 if piece == 1 else 0)
        self.sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                          b"Content-Length: %d\r\n\r\n%s" % (len(body), body))  # fmt: skip
        self.sock.setblocking(False)

    def read(self):
        """Whether it goes on."""
        try:
            part = self.sock.recv(self.piece)
        except BlockingIOError:
            return True
        self.received += part
        if self.reset_after is not None and len(self.received) > self.reset_after:
            reset(self.sock)
            return False
        if not part:
            self.done = True
            self.sock.close()
        return bool(part)

    def started(self):
        return b"\r\n\r\n" in self.received

    def problem(self):
        """What is wrong with the whole answer; empty where nothing is."""
        if not self.received.startswith(b"HTTP/1.1 200 "):
            return bytes(self.received[:200]).decode(errors="replace")
        if b"data: [DONE]\n\n" not in self.received or not self.received.endswith(b"0\r\n\r\n"):
            return f"it broke off after {bytes(self.received[-100:])}"
        if b'"completion_tokens":%d' % self.tokens not in self.received:
            return f"not {self.tokens} tokens"
        return ""


class Load(unittest.TestCase):
    def test_thousands_of_streams(self):
        count = Options.streams
        flags = ("--set", "max_num_seqs=64", "--set", f"max_queue_size={count}",
                 "--set", "keep_alive_timeout_s=600")  # fmt: skip
        with serving(Options.model, *flags) as server:
            self.assertEqual(e2e.post(server.port, "/v1/completions", {"prompt": [5], "max_tokens": 2})[0], 200)
            before = memory(server, "VmHWM")
            idle = [connect(server.port) for _ in range(Options.idle)]
            streams = self.open_all(server, count)
            self.run_all(streams)
            whole = [s for s in streams if s.reset_after is None]
            problems = collections.Counter(filter(None, (s.problem() for s in whole)))
            self.assertEqual(problems, {})
            grown = memory(server, "VmHWM") - before
            self.assertLess(grown, (count + Options.idle) * BYTES_PER_CONNECTION)
            print(f"{count} streams, {Options.idle} idle sockets: peak resident memory grew by {grown >> 20} MiB")
            wait_until(lambda: metric(server, "cadre_kv_cache_usage_perc") == 0, server, "the cache is empty")
            self.assertEqual(metric(server, "cadre_num_requests_waiting"), 0)
            for sock in idle:  # still open, and each of use
                sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                self.assertTrue(sock.recv(4096).startswith(b"HTTP/1.1 200 "))
                sock.close()

    def open_all(self, server, count):
        """All of them open at once: the first ones are long enough that the others queue behind them."""
        streams = []
        for i in range(count):
            tokens = CONTEXT - 4 if i < 128 else 1 + i % 24
            if i % 40 == 39:
                streams.append(Stream(server.port, tokens, piece=1))
            elif i % 40 == 19:
                streams.append(Stream(server.port, 60, reset_after=1000))
            else:
                streams.append(Stream(server.port, tokens))
        wait_until(lambda: metric(server, "cadre_num_requests_running") +
                   metric(server, "cadre_num_requests_waiting") >= count - 128, server, "all are open")  # fmt: skip
        return streams

    def run_all(self, streams):
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream.sock, selectors.EVENT_READ, stream)
            deadline = time.monotonic() + 3 * e2e.TIMEOUT
            while selector.get_map():
                self.assertLess(time.monotonic(), deadline, f"{len(selector.get_map())} streams are open yet")
                for key, _ in selector.select(1):
                    sock = key.data.sock
                    number = sock.fileno()
                    if not key.data.read():
                        selector.unregister(number if sock.fileno() < 0 else sock)

    def test_a_reader_that_stops_is_cut_off_and_slows_nobody(self):
        with serving(Options.model) as server:
            body = {"prompt": [5], "n": 8, "max_tokens": CONTEXT - 2, "logprobs": 5, "ignore_eos": True,
                    "stream": True}  # fmt: skip
            data = json.dumps(body).encode()
            sock = connect(server.port, 4096)
            sock.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
                         % (len(data), data))
            wait_until(lambda: metric(server, "cadre_num_requests_running") == 8, server, "it runs")
            before = memory(server, "VmHWM")
            ask = {"prompt": [5, 6], "max_tokens": 20, "ignore_eos": True, "stream": False}
            self.assertEqual(e2e.post(server.port, "/v1/completions", ask)[1]["usage"]["completion_tokens"], 20)
            failure = 'cadre_request_failure_total{kind="cancelled"}'
            wait_until(lambda: metric(server, re.escape(failure)) == 8, server, "it is cut off")
            wait_until(lambda: metric(server, "cadre_kv_cache_usage_perc") == 0, server, "the cache is empty")
            self.assertLess(memory(server, "VmHWM") - before, 32 << 20)
            sock.close()


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
