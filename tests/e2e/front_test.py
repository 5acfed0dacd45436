#!/usr/bin/env python3
"""What makes `cadre serve` fit to stand behind a load balancer: keys, binds, ends. Standard library only.

    python3 tests/e2e/front_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import ssl
import subprocess
import unittest
import warnings

import e2e
from e2e import Options, serving, wait_until

CONTEXT = 1024


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=20", "eval.interval=0")
    Options.folder, Options.model = shop.folder, shop.model(run, "model")


def ask(port, path, body=None, key=None, headers=None):
    """(status, text, headers) of a GET, or of a POST of `body`."""
    headers = dict(headers or {})
    if key:
        headers["Authorization"] = f"Bearer {key}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=e2e.TIMEOUT)
    try:
        connection.request("POST" if body else "GET", path, body, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(), response.headers
    finally:
        connection.close()


def key_file(name, *keys, mode=0o600):
    path = Options.folder / name
    path.write_text("# of this test\n" + "".join(f"{key}\n" for key in keys), encoding="utf-8")
    path.chmod(mode)
    return path


def admin_port(server):
    def found():
        return re.search(r"administration at http://127\.0\.0\.1:(\d+)", server.output())

    wait_until(found, server, "it says where administration is")
    return int(found().group(1))


class Keys(unittest.TestCase):
    def test_a_file_of_keys_is_read_again_on_sighup(self):
        path = key_file("keys", "alpha", "beta")
        with serving(Options.model, "--api-key-file", path, "--api-key", "gamma") as server:
            def accepted():
                keys = ("alpha", "beta", "gamma", "delta", "# of this test")
                return [key for key in keys if ask(server.port, "/v1/models", key=key)[0] == 200]

            self.assertEqual(accepted(), ["alpha", "beta", "gamma"])
            key_file("keys", "delta")
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: "SIGHUP: 2 client keys" in server.output(), server, "the keys are read")
            self.assertEqual(accepted(), ["gamma", "delta"])
            path.chmod(0o644)
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: "as before" in server.output(), server, "the file is refused")
            self.assertEqual(accepted(), ["gamma", "delta"])
            self.assertNotIn("delta", server.output())

    def test_settings_that_would_do_nothing(self):
        for said, flags in (("admin_port", ("--set", f"admin_api_key_file={key_file('alone', 'alpha')}")),
                            ("kv_disk_cache_bytes", ("--set", "kv_disk_cache_path=/tmp")),
                            ("served_model_name", ("--served-model-name", "a", "--served-model-name", "a")),
                            ("which is port", ("--port", 8123, "--admin-port", 8123))):  # fmt: skip
            port = () if "--port" in flags else ("--port", 0)
            self.assertIn(said, e2e.refused("serve", "--model", Options.model, *port, *flags), flags)

    def test_what_must_not_start(self):
        def refused(*flags):
            return e2e.refused("serve", "--model", Options.model, "--port", 0, *flags)

        self.assertIn("api_key_file", refused("--host", "0.0.0.0"))
        self.assertIn("admin_api_key_file", refused("--admin-host", "0.0.0.0", "--admin-port", 0))
        self.assertIn("644", refused("--api-key-file", key_file("open", "key", mode=0o644)))
        self.assertIn("nowhere", refused("--api-key-file", "nowhere"))
        with serving(Options.model, "--host", "0.0.0.0", "--allow-unauthenticated",
                     log="http://0.0.0.0:") as server:  # fmt: skip
            self.assertEqual(ask(server.port, "/v1/models")[0], 200)

    def test_models_may_be_public(self):
        with serving(Options.model, "--api-key", "secret", "--public-models") as server:
            self.assertEqual(ask(server.port, "/v1/models")[0], 200)
            self.assertEqual(ask(server.port, "/version")[0], 401)

    def test_one_key_leaves_places_to_the_others(self):
        with serving(Options.model, "--api-key", "alpha", "--api-key", "beta",
                     "--set", "max_requests_per_key=2") as server:  # fmt: skip
            body = {"prompt": [5, 6], "max_tokens": CONTEXT - 2, "ignore_eos": True, "stream": True, "n": 2}
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=e2e.TIMEOUT)
            connection.request("POST", "/v1/completions", json.dumps(body), {"X-Api-Key": "alpha"})
            response = connection.getresponse()
            self.assertTrue(response.readline().startswith(b"data:"))
            short = json.dumps({"prompt": [5, 6], "max_tokens": 1})
            status, text, headers = ask(server.port, "/v1/completions", short, "alpha")
            self.assertEqual(status, 429, text)
            self.assertIn("this key's queue is full", text)
            self.assertGreater(int(headers["Retry-After"]), 0)
            self.assertEqual(ask(server.port, "/v1/completions", short, "beta")[0], 200)
            connection.close()

    def test_administration_has_a_bind_of_its_own(self):
        keys = key_file("admin", "root")
        with serving(Options.model, "--admin-port", 0, "--api-key", "client",
                     "--set", f"admin_api_key_file={keys}") as server:  # fmt: skip
            admin = admin_port(server)
            self.assertEqual(ask(server.port, "/metrics", key="client")[0], 404)
            self.assertEqual(ask(admin, "/metrics", key="client")[0], 401)
            status, text, _ = ask(admin, "/metrics", key="root")
            self.assertEqual(status, 200)
            self.assertIn("cadre_num_requests_running 0", text)


def certificate(name):
    """Files of a fresh self-signed certificate for 127.0.0.1, and of its key."""
    files = Options.folder / f"{name}.pem", Options.folder / f"{name}.key"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                    "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-out", files[0], "-keyout", files[1]], check=True, capture_output=True)  # fmt: skip
    return files


@unittest.skipUnless(shutil.which("openssl"), "openssl is not installed")
class Tls(unittest.TestCase):
    def flags(self, files):
        return ("--set", f"tls_certificate_file={files[0]}", "--set", f"tls_key_file={files[1]}")

    def serve(self, files, *flags):
        return serving(Options.model, *self.flags(files), *flags, log="https://127.0.0.1:",
                       context=ssl.create_default_context(cafile=files[0]))  # fmt: skip

    def handshake(self, port, context):
        """The certificate that the server shows."""
        with socket.create_connection(("127.0.0.1", port), timeout=e2e.TIMEOUT) as sock:
            with context.wrap_socket(sock, server_hostname="127.0.0.1") as tls:
                return tls.getpeercert(binary_form=True), tls.version(), tls.selected_alpn_protocol()

    def test_answers_and_streams(self):
        files = certificate("one")
        context = ssl.create_default_context(cafile=files[0])
        context.set_alpn_protocols(["h2", "http/1.1"])
        with self.serve(files, "--admin-port", 0) as server:
            _, version, protocol = self.handshake(server.port, context)
            self.assertEqual((version, protocol), ("TLSv1.3", "http/1.1"))
            connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=e2e.TIMEOUT, context=context)
            body = {"prompt": [5, 6, 7], "max_tokens": 40, "temperature": 0, "ignore_eos": True}
            for _ in range(3):  # on one connection
                connection.request("POST", "/v1/completions", json.dumps(body))
                whole = json.loads(connection.getresponse().read())["choices"][0]["text"]
                connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}))
                lines = connection.getresponse().read().decode().splitlines()
                chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
                self.assertEqual("".join(c["choices"][0]["text"] for c in chunks), whole)
            # Who leaves in mid-stream is noticed here, too.
            connection.request("POST", "/v1/completions", json.dumps(
                {**body, "max_tokens": CONTEXT - 3, "n": 4, "stream": True}))  # fmt: skip
            response = connection.getresponse()
            self.assertTrue(response.readline())
            response.close()
            connection.close()
            gauge = "cadre_num_requests_running 0\n"
            metrics = admin_port(server)
            wait_until(lambda: gauge in ask(metrics, "/metrics")[1], server, "the stream is cancelled")
            self.assertIn('cadre_request_failure_total{kind="cancelled"} 4\n', ask(metrics, "/metrics")[1])

    def test_other_tongues_end_cleanly(self):
        files = certificate("two")
        with self.serve(files, "--set", "read_timeout_s=1") as server:
            old = ssl.create_default_context(cafile=files[0])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                old.minimum_version = ssl.TLSVersion.TLSv1
                old.maximum_version = ssl.TLSVersion.TLSv1_1
            with self.assertRaises(ssl.SSLError):
                self.handshake(server.port, old)
            status, text, _ = ask(server.port, "/health")
            self.assertEqual((status, text), (400, "This port speaks TLS.\n"))
            with socket.create_connection(("127.0.0.1", server.port), timeout=e2e.TIMEOUT) as silent:
                self.assertEqual(silent.recv(1), b"")  # at the deadline
            with socket.create_connection(("127.0.0.1", server.port), timeout=e2e.TIMEOUT) as noise:
                noise.sendall(bytes(range(256)) * 10)
                with contextlib.suppress(ConnectionResetError):
                    while noise.recv(4096):
                        pass
            self.assertEqual(e2e.status(server.port, "/health", server.context), 200)
        with serving(Options.model) as server, self.assertRaises((ssl.SSLError, ConnectionError)):
            self.handshake(server.port, ssl.create_default_context(cafile=files[0]))

    def test_certificates_are_read_again(self):
        files, other = certificate("three"), certificate("four")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        log, moved = Options.folder / "tls_access.log", Options.folder / "tls_access.log.1"
        with self.serve(files, "--set", f"access_log={log}") as server:
            first = self.handshake(server.port, context)[0]
            for source, target in zip(other, files, strict=True):
                target.write_bytes(source.read_bytes())
            self.assertEqual(self.handshake(server.port, context)[0], first)
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: self.handshake(server.port, context)[0] != first, server, "the new one is shown")
            files[0].write_bytes(b"no certificate")
            log.rename(moved)
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: "what was there stays" in server.output(), server, "it is refused")
            self.assertTrue(log.exists(), "the log goes on in a new file all the same")
            self.assertNotEqual(self.handshake(server.port, context)[0], first)

    def test_files_that_do_not_fit(self):
        files, other = certificate("five"), certificate("six")

        def refused(*flags):
            return e2e.refused("serve", "--model", Options.model, "--port", 0, *flags)

        self.assertIn("tls_key_file", refused("--set", f"tls_certificate_file={files[0]}"))
        self.assertIn(str(other[1]), refused(*self.flags((files[0], other[1]))))
        self.assertIn("No such file", refused(*self.flags(("nowhere.pem", files[1]))))
        self.assertIn(str(files[1]), refused(*self.flags((files[1], files[1]))))
        files[1].chmod(0o644)
        self.assertIn("644", refused(*self.flags(files)))


class Logs(unittest.TestCase):
    def test_no_secret_is_written_anywhere(self):
        log, trace = Options.folder / "access.log", Options.folder / "trace.json"
        with serving(Options.model, "--api-key", "canarykey", "--set", f"access_log={log}", "--trace", trace,
                     "--log-level", "trace") as server:  # fmt: skip
            body = json.dumps({"prompt": "the canaryprompt", "stop": ["canarystop"], "max_tokens": 4,
                               "ignore_eos": True, "canaryfield": 1})  # fmt: skip
            more = {"Cookie": "canarycookie", "X-Request-Id": "abc"}
            self.assertEqual(ask(server.port, "/v1/completions?canaryquery", body, "canarykey", more)[0], 200)
            self.assertEqual(ask(server.port, "/canarypath", key="canarywrong")[0], 404)
            self.assertEqual(ask(server.port, "/v1/models", key="canarywrong")[0], 401)
            self.assertEqual(ask(server.port, "/v1/completions", '{"prompt": "canarytext', "canarykey")[0], 400)
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(e2e.TIMEOUT), 0)
            # The name of an unknown field is logged on purpose.
            output = server.output().replace("'canaryfield'", "")
        written = output + log.read_text() + trace.read_text()
        self.assertNotIn("canary", written)
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        self.assertEqual([line["status"] for line in lines], [200, 404, 401, 400])
        self.assertEqual((lines[0]["id"], lines[0]["generation_tokens"]), ("abc", 4))
        spans = [e["name"] for e in json.loads(trace.read_text()) if e.get("cat") == "request" and e["ph"] == "b"]
        self.assertEqual(spans[:3], ["request", "front", "queue"])


class Dashboards(unittest.TestCase):
    def test_they_name_what_exists(self):
        """Every metric of the alerts and the dashboard is one that a server has."""
        with serving(Options.model) as server:
            self.assertEqual(e2e.post(server.port, "/v1/completions", {"prompt": "a", "max_tokens": 2})[0], 200)
            text = ask(server.port, "/metrics")[1]
        names = {re.split(r"[{ ]", line)[0] for line in text.splitlines() if not line.startswith("#")}
        for path in ("deploy/prometheus/alerts.yml", "deploy/grafana/cadre_serving.json"):
            used = set(re.findall(r"\b(?:cadre|process)_[a-z0-9_]+", (e2e.ROOT / path).read_text(encoding="utf-8")))
            self.assertGreater(len(used - {"cadre_serving"}), 5)
            self.assertEqual(used - names - {"cadre_serving"}, set(), path)
        board = json.loads((e2e.ROOT / "deploy/grafana/cadre_serving.json").read_text(encoding="utf-8"))
        self.assertTrue(all(target["expr"] for panel in board["panels"] for target in panel["targets"]))


class Names(unittest.TestCase):
    def test_a_model_has_several(self):
        names = "--served-model-name", "large", "--served-model-name", "small"
        with serving(Options.model, *names) as server:
            models = json.loads(ask(server.port, "/v1/models")[1])["data"]
            self.assertEqual([model["id"] for model in models], ["large", "small"])
            for asked, answered in (("large", "large"), ("small", "small"), (None, "large")):
                body = {"prompt": [5], "max_tokens": 1, **({"model": asked} if asked else {})}
                status, answer = e2e.post(server.port, "/v1/completions", body)
                self.assertEqual((status, answer["model"]), (200, answered))
            self.assertEqual(e2e.post(server.port, "/v1/completions", {"prompt": [5], "model": "other"})[0], 404)


class Ends(unittest.TestCase):
    BODY = {"prompt": [5, 6], "max_tokens": CONTEXT - 2, "ignore_eos": True, "stream": True}

    def begin(self, port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=e2e.TIMEOUT)
        connection.request("POST", "/v1/completions", json.dumps(self.BODY))
        response = connection.getresponse()
        self.assertTrue(response.readline().startswith(b"data:"))
        return connection, response

    def test_a_delay_takes_requests_that_readiness_no_longer_wants(self):
        with serving(Options.model, "--set", f"drain_delay_s={e2e.TIMEOUT}") as server:
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: e2e.status(server.port, "/ready") == 503, server, "it is not ready")
            self.assertEqual(e2e.status(server.port, "/health"), 200)
            status, text = e2e.post(server.port, "/v1/completions", {**self.BODY, "stream": False})
            self.assertEqual((status, text["usage"]["completion_tokens"]), (200, CONTEXT - 2))

    def test_a_second_signal_ends_at_once(self):
        with serving(Options.model, "--set", f"drain_timeout_s={e2e.TIMEOUT}") as server:
            connection, response = self.begin(server.port)
            server.send_signal(signal.SIGTERM)
            wait_until(lambda: e2e.status(server.port, "/ready") == 503, server, "it drains")
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(e2e.TIMEOUT), 130)
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.assertNotIn(b"[DONE]", response.read())
            connection.close()


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
