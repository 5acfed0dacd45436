#!/usr/bin/env python3
"""The built-in chat page in headless Chromium (tools/install_deps.sh --browser); without it the test says so
and is skipped. Standard library only: Chromium's protocol comes over two pipes.

    python3 tests/e2e/chat_page_test.py [--cadre build/release/cadre] [unittest flags, test names]

CADRE_SCREENSHOT=FILE.png keeps a picture of the page.
"""

import base64
import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time
import unittest

import e2e
from e2e import Options, serving

CONTEXT = 1024
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
KEY = "page-key"


def setUpModule():
    shop = e2e.Workshop()
    run = shop.train("run", f"model.max_position_embeddings={CONTEXT}", "train_steps=20", "eval.interval=0")
    Options.folder, Options.model = shop.folder, shop.model(run, "model")


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, folder):
        to_child, self.output = os.pipe()
        self.input, from_child = os.pipe()
        command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--no-first-run", "--disable-background-networking", "--window-size=900,700",
                   f"--user-data-dir={folder}", "--remote-debugging-pipe", "about:blank"]  # fmt: skip

        def pipes():  # where the protocol has them
            os.dup2(to_child, 3)
            os.dup2(from_child, 4)

        # The ends may lie on 3 and 4 already, in the other order: out of the way first.
        to_child, from_child = (os.dup2(fd, 50 + i) for i, fd in enumerate((to_child, from_child)))
        self.process = subprocess.Popen(command, preexec_fn=pipes, close_fds=False,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        self.buffer, self.next, self.session, self.events = b"", 0, None, []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attach = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self.session = attach["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def message(self):
        while b"\0" not in self.buffer:
            part = os.read(self.input, 65536)
            if not part:
                raise AssertionError("Chromium has ended")
            self.buffer += part
        text, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(text)

    def call(self, method, **parameters):
        self.next += 1
        request = {"id": self.next, "method": method, "params": parameters}
        if self.session:
            request["sessionId"] = self.session
        os.write(self.output, json.dumps(request).encode() + b"\0")
        while (reply := self.message()).get("id") != self.next:
            self.events.append(reply)
        if "error" in reply:
            raise AssertionError(f"{method}: {reply['error']}")
        return reply["result"]

    def evaluate(self, script):
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise AssertionError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait_for(self, script):
        deadline = time.monotonic() + e2e.TIMEOUT
        while not self.evaluate(script):
            if time.monotonic() > deadline:
                raise AssertionError(f"{script}: not within {e2e.TIMEOUT} s; {self.evaluate('document.body.innerText')}")
            time.sleep(0.05)

    def complaints(self):
        """What the console says, violations of the page's policy included."""
        return [e["params"] for e in self.events if e.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown")]

    def urls(self):
        return {e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"}

    def close(self):
        with contextlib.suppress(AssertionError, OSError):
            self.call("Browser.close")
        self.process.kill()
        self.process.wait()


@unittest.skipUnless(CHROMIUM, "chromium is not installed (tools/install_deps.sh --browser)")
class ChatPage(unittest.TestCase):
    def setUp(self):
        self.browser = Browser(Options.folder / "browser")
        self.addCleanup(self.browser.close)

    def ask(self, text):
        self.browser.evaluate(f"""document.getElementById('text').value = {json.dumps(text)};
                                  document.getElementById('form').requestSubmit()""")

    def test_a_conversation(self):
        browser = self.browser
        with serving(Options.model, "--api-key", KEY) as server:
            browser.call("Page.navigate", url=server.url + "/")
            browser.wait_for("document.getElementById('text')?.placeholder.includes('key')")
            self.assertEqual(browser.evaluate("document.getElementById('model').value"), "")
            browser.evaluate(f"""document.getElementById('key').value = '{KEY}';
                                 document.getElementById('key').dispatchEvent(new Event('change'))""")
            browser.wait_for("document.getElementById('model').value !== ''")
            self.assertEqual(browser.evaluate("document.getElementById('model').value"), Options.model.name)
            refused = len(browser.complaints())  # the 401 before the key
            for turn in (1, 2):
                self.ask(f"the sea <b>gave</b> {turn}")
                browser.wait_for(f"document.querySelectorAll('.note').length === {turn}")
            self.assertEqual(browser.evaluate("document.querySelectorAll('.error').length"), 0)
            turns = browser.evaluate("[...document.querySelectorAll('.turn')].map((t) => t.textContent)")
            self.assertEqual(turns[0], "the sea <b>gave</b> 1")  # text, not markup
            self.assertEqual(len(turns), 4)
            self.assertTrue(turns[1] and turns[3])
            self.assertRegex(browser.evaluate("document.querySelector('.note').textContent"), r"^\d+ tokens, ")
            self.assertEqual(browser.complaints()[refused:], [])
            self.assertTrue(all(u.startswith((server.url, "data:", "about:")) for u in browser.urls()), browser.urls())
            if path := os.environ.get("CADRE_SCREENSHOT"):
                picture = browser.call("Page.captureScreenshot", format="png")["data"]
                pathlib.Path(path).write_bytes(base64.b64decode(picture))

    def test_stop_and_errors(self):
        browser = self.browser
        with serving(Options.model) as server:
            browser.call("Page.navigate", url=server.url + "/")
            browser.wait_for("document.getElementById('model')?.value")
            self.ask("the sea")
            browser.wait_for("document.querySelectorAll('.assistant')[0]?.textContent.length > 0")
            browser.evaluate("document.getElementById('stop').click()")
            browser.wait_for("document.querySelectorAll('.note').length === 1")
            self.ask("a king " * CONTEXT)
            browser.wait_for("document.querySelectorAll('.error').length === 1")
            self.assertIn(str(CONTEXT), browser.evaluate("document.querySelector('.error').textContent"))
            # Foreign scripts do not run here.
            ran = browser.evaluate("""new Promise((resolve) => {
                const script = document.createElement('script');
                script.textContent = 'window.foreign = 1';
                document.body.append(script);
                setTimeout(() => resolve(window.foreign || 0), 0);
            })""")
            self.assertEqual(ran, 0)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
