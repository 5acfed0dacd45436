#!/usr/bin/env python3
"""Two replicas behind HAProxy are restarted one after the other under load, and no request fails. Needs
Debian's haproxy; without it the test says so and is skipped.

    python3 tests/e2e/balancer_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

import contextlib
import csv
import http.client
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import unittest

import e2e
from e2e import ROOT, Options, wait_until

CONTEXT = 1024
CLIENTS = 8


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=20", "eval.interval=0")
    Options.folder, Options.model = shop.folder, shop.model(run, "model")


def free_ports(count):
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [s.getsockname()[1] for s in held]


@contextlib.contextmanager
def replica(port):
    flags = ("--set", "drain_delay_s=3", "--set", "drain_timeout_s=120", "--threads", 1)
    with e2e.running("serve", "--model", Options.model, "--port", port, *flags) as process:
        wait_until(lambda: e2e.status(port, "/ready") == 200, process, f"the replica at {port} is ready")
        yield process


@contextlib.contextmanager
def balancer(bind, ports):
    control = Options.folder / "haproxy.sock"
    more = Options.folder / "haproxy_test.cfg"
    more.write_text(f"global\n    stats socket {control}\n", encoding="utf-8")
    environment = {**os.environ, "CADRE_BIND": f"127.0.0.1:{bind}"}
    environment |= {f"CADRE_{i + 1}": f"127.0.0.1:{port}" for i, port in enumerate(ports)}
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", ROOT / "deploy/haproxy/haproxy.cfg", "-f", more], env=environment)

    def states():
        """{replica: its state as HAProxy sees it}"""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(control))
            sock.sendall(b"show stat\n")
            text = b"".join(iter(lambda: sock.recv(65536), b"")).decode()
            rows = csv.DictReader(text.removeprefix("# ").splitlines())
            return {row["svname"]: row["status"] for row in rows if row["svname"].startswith("replica")}
        return {}

    process.states = states
    try:
        wait_until(lambda: set(states().values()) == {"UP"}, process, "HAProxy sees both replicas")
        yield process
    finally:
        process.kill()
        process.wait()


class Client(threading.Thread):
    """Asks and checks the answers, one after the other, until it is told to stop."""

    def __init__(self, port, seed, stop):
        super().__init__()
        self.port, self.stop, self.rng = port, stop, random.Random(seed)
        self.good, self.bad = 0, []

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=e2e.TIMEOUT)
        while not self.stop.is_set() and not self.bad:
            tokens, stream = self.rng.randint(1, 150), self.rng.random() < 0.5
            body = {"prompt": [self.rng.randrange(512) for _ in range(self.rng.randint(1, 60))],
                    "max_tokens": tokens, "ignore_eos": True, "stream": stream}  # fmt: skip
            if stream:
                body["stream_options"] = {"include_usage": True}
            try:
                connection.request("POST", "/v1/completions", json.dumps(body))
                response = connection.getresponse()
                text = response.read().decode()
                self.check(response.status, text, tokens, stream)
                if self.rng.random() < 0.3:
                    connection.close()  # and opens another one with the next request
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.bad.append(repr(error))
        connection.close()

    def check(self, status, text, tokens, stream):
        if status != 200:
            self.bad.append(f"{status}: {text[:300]}")
            return
        if stream:
            payloads = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
            if payloads[-1] != "[DONE]":
                self.bad.append(f"the stream broke off after {payloads[-1][:300]}")
                return
            text = payloads[-2]
        made = json.loads(text)["usage"]["completion_tokens"]
        if made != tokens:
            self.bad.append(f"{made} tokens of {tokens}")
        self.good += 1


@unittest.skipUnless(shutil.which("haproxy"), "haproxy is not installed")
class RollingRestart(unittest.TestCase):
    def test_no_request_fails(self):
        rounds = 5 if Options.long else 1
        bind, *ports = free_ports(3)
        stop = threading.Event()
        with contextlib.ExitStack() as stack:
            replicas = [stack.enter_context(replica(port)) for port in ports]
            proxy = stack.enter_context(balancer(bind, ports))
            clients = [Client(bind, seed, stop) for seed in range(CLIENTS)]
            for client in clients:
                client.start()
            try:
                for turn in range(2 * rounds):
                    self.restart(stack, replicas, ports, turn % 2, proxy, clients)
            finally:
                stop.set()
                for client in clients:
                    client.join()
            self.assertEqual([c.bad for c in clients], [[]] * CLIENTS)

    def restart(self, stack, replicas, ports, which, proxy, clients):
        name = f"replica{which + 1}"
        before = sum(c.good for c in clients)
        old = replicas[which]
        old.send_signal(signal.SIGTERM)
        wait_until(lambda: proxy.states()[name].startswith("DOWN"), proxy, f"HAProxy leaves {name} out")
        self.assertEqual(old.wait(e2e.TIMEOUT), 0, old.output())
        self.assertNotIn("requests still ran", old.output())
        replicas[which] = stack.enter_context(replica(ports[which]))
        wait_until(lambda: proxy.states()[name] == "UP", proxy, f"HAProxy takes {name} back")
        # The load goes on over both before the other one goes.
        wait_until(lambda: sum(c.good for c in clients) > before + CLIENTS or any(c.bad for c in clients),
                   proxy, "requests are answered")  # fmt: skip
        self.assertEqual([c.bad for c in clients], [[]] * CLIENTS)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
