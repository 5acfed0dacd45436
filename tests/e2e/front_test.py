#!/usr/bin/env python3
"""What makes `cadre serve` fit to stand behind a load balancer: keys, binds, ends. Standard library only.

    python3 tests/e2e/front_test.py [--cadre build/release/cadre] [--all] [unittest flags, test names]
"""

import http.client
import re
import signal
import unittest

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
            wait_until(lambda: "SIGHUP: 2 keys" in server.output(), server, "the keys are read")
            self.assertEqual(accepted(), ["gamma", "delta"])
            path.chmod(0o644)
            server.send_signal(signal.SIGHUP)
            wait_until(lambda: "as before" in server.output(), server, "the file is refused")
            self.assertEqual(accepted(), ["gamma", "delta"])
            self.assertNotIn("delta", server.output())

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

    def test_administration_has_a_bind_of_its_own(self):
        keys = key_file("admin", "root")
        with serving(Options.model, "--admin-port", 0, "--api-key", "client",
                     "--set", f"admin_api_key_file={keys}") as server:  # fmt: skip
            def found():
                return re.search(r"administration at http://127\.0\.0\.1:(\d+)", server.output())

            wait_until(found, server, "it says where administration is")
            admin = int(found().group(1))
            self.assertEqual(ask(server.port, "/metrics", key="client")[0], 404)
            self.assertEqual(ask(admin, "/metrics", key="client")[0], 401)
            status, text, _ = ask(admin, "/metrics", key="root")
            self.assertEqual(status, 200)
            self.assertIn("cadre_num_requests_running 0", text)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
