"""Runs of the program as a user makes them, for the end-to-end tests. Standard library only."""

import argparse
import atexit
import contextlib
import fcntl
import http.client
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
CONFIG = pathlib.Path(__file__).resolve().parent / "tiny_moe.yaml"
TIMEOUT = 240  # seconds; a bound against hanging, not a measure
VOCABULARY = 512


class Options:
    """Filled by `parse` before the tests run."""

    cadre = ROOT / "build/release/cadre"
    long = False


def parse():
    """Reads the flags into Options and returns what is left for unittest."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cadre", type=pathlib.Path, default=Options.cadre, help="the program")
    parser.add_argument("--all", action="store_true", help="also what takes minutes")
    args, rest = parser.parse_known_args()
    Options.cadre, Options.long = args.cadre.resolve(), args.all
    return [sys.argv[0], *rest]


def cadre(*arguments, stdin="", code=0):
    """Runs the program to its end; asserts the exit code and returns the finished process."""
    data = stdin if isinstance(stdin, bytes) else stdin.encode()
    done = subprocess.run([Options.cadre, *map(str, arguments)], input=data, capture_output=True,
                          timeout=TIMEOUT, cwd=ROOT, check=False)
    done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode(errors="replace")
    if code is not None and done.returncode != code:
        raise AssertionError(f"cadre {' '.join(map(str, arguments))}: exit code {done.returncode}, "
                             f"{code} expected\n{done.stderr[-3000:]}")
    return done


def cadre_json(*arguments, stdin=""):
    """With --json: the one document on standard output."""
    return json.loads(cadre(*arguments, "--json", stdin=stdin).stdout)


def refused(*arguments, stdin="", code=None):
    """Runs what must fail; returns the one line it says, without `error: `."""
    done = cadre(*arguments, stdin=stdin, code=None)
    command = "cadre " + " ".join(map(str, arguments))
    if done.returncode not in ((1, 2) if code is None else (code,)):
        raise AssertionError(f"{command}: exit code {done.returncode}\n{done.stderr[-3000:]}")
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if len(lines) != 1 or done.stderr.rstrip().splitlines()[-1] != lines[0]:
        raise AssertionError(f"{command}: one last line `error: ...` expected, got\n{done.stderr[-3000:]}")
    return lines[0].removeprefix("error: ")


def temporary_folder():
    """Removed when the test program ends."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="cadre-e2e-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def write_corpus(path, documents=400):
    """Sentences of a small grammar: a few steps are enough to learn something from them."""
    rng = random.Random(7)
    subject = ["the sea", "a king", "the old man", "every river", "my brother", "the wind"]
    verb = ["gave", "took", "carried", "remembered", "followed", "broke"]
    thing = ["a stone", "the bread", "seven lamps", "an open door", "the word", "his staff"]
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(documents):
            sentences = (f"{rng.choice(subject)} {rng.choice(verb)} {rng.choice(thing)}."
                         for _ in range(rng.randint(5, 40)))
            file.write(json.dumps({"text": " ".join(sentences)}) + "\n")


class Workshop:
    """A corpus, its tokenizer and its tokens; runs and models are made in it."""

    def __init__(self):
        self.folder = temporary_folder()
        self.corpus = self.folder / "corpus.jsonl"
        self.tokenizer = self.folder / "tokenizer"
        self.tokens = self.folder / "tokens"
        write_corpus(self.corpus)
        cadre("tokenizer", "train", "--data", self.corpus, "--vocab-size", VOCABULARY,
              "--output", self.tokenizer)
        cadre("data", "build", "--tokenizer", self.tokenizer, "--input", self.corpus,
              "--output", self.tokens)

    def train_arguments(self, output, *overrides):
        sets = (f"tokenizer={self.tokenizer}", f"data.sources[0].path={self.tokens}", *overrides)
        return ["train", "-c", CONFIG, *(a for s in sets for a in ("--set", s)), "--output", output]

    def train(self, name, *overrides):
        cadre(*self.train_arguments(self.folder / name, *overrides))
        return self.folder / name

    def model(self, run, name):
        cadre("checkpoint", "convert", last_checkpoint(run), "--to", self.folder / name)
        return self.folder / name


def last_checkpoint(run):
    return (run / "checkpoints/latest").resolve()


def metrics(run):
    """The whole lines of metrics.jsonl so far."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
            if line.endswith("\n")]


def wait_until(condition, process, what):
    """Polls; fails where the process ends or the bound passes first."""
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if process.poll() is not None:
            raise AssertionError(f"{what}: the process ended with {process.returncode} before that")
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {TIMEOUT} s")
        time.sleep(0.02)


@contextlib.contextmanager
def leased(path):
    """Who opens the file waits until the yielded function is called, or for a part of a minute."""
    kept = signal.signal(signal.SIGIO, signal.SIG_IGN)  # says that somebody wants the file
    file = os.open(path, os.O_RDWR)
    try:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            raise unittest.SkipTest(f"no lease on {path}: {error}") from error
        yield lambda: fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    finally:
        os.close(file)
        signal.signal(signal.SIGIO, kept)


def contents(log):
    """What was written to a file whose writer goes on: the place where it writes is ours, too, so it
    must not be moved."""
    return os.pread(log.fileno(), os.fstat(log.fileno()).st_size, 0).decode(errors="replace")


@contextlib.contextmanager
def running(*arguments):
    """The program in the background; killed at the end where it still runs."""
    log = tempfile.TemporaryFile()
    process = subprocess.Popen([Options.cadre, *map(str, arguments)], cwd=ROOT, stdout=log,
                               stderr=subprocess.STDOUT)
    process.output = lambda: contents(log)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        log.close()


@contextlib.contextmanager
def serving(model, *flags, log="http://127.0.0.1:", context=None):
    """A server on a free port, ready; `url` and `port` are set on the process. `log`: what stands before
    the port in its log; `context`: of TLS."""
    with running("serve", "--model", model, "--port", 0, *flags) as server:
        def listening():
            found = re.search(rf"{re.escape(log)}(\d+)", server.output())
            server.port = int(found.group(1)) if found else 0
            return found and status(server.port, "/ready", context) == 200
        wait_until(listening, server, "the server is ready")
        server.context = context
        server.url = f"http://127.0.0.1:{server.port}"
        yield server


def status(port, path, context=None, headers=None):
    """HTTP status of a GET; 0 where nobody listens. `context`: of TLS."""
    kind = http.client.HTTPSConnection if context else http.client.HTTPConnection
    connection = kind("127.0.0.1", port, timeout=30, **({"context": context} if context else {}))
    try:
        connection.request("GET", path, headers=headers or {})
        with connection.getresponse() as response:
            return response.status
    except OSError:
        return 0
    finally:
        connection.close()


def post(port, path, body):
    """(status, parsed body)."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
