#!/usr/bin/env python3
"""Text in, trained mixture of experts out, scored, generated from, served and stopped.

    python3 tests/e2e/pipeline_test.py [--cadre build/release/cadre] [unittest flags, test names]
"""

import http.client
import json
import math
import signal
import struct
import subprocess
import sys
import unittest

import e2e
from e2e import cadre, cadre_json


def setUpModule():
    global shop, run, model
    shop = e2e.Workshop()
    run = shop.train("run")
    model = shop.model(run, "model")


def read_safetensors(path):
    """{name: (shape, little-endian f32 values)} of a file with f32 tensors alone."""
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            tensors[name] = entry["shape"], struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])
    return tensors


class Training(unittest.TestCase):
    def test_every_step_has_its_metrics_and_the_loss_falls(self):
        lines = e2e.metrics(run)
        self.assertEqual([line["step"] for line in lines], list(range(1, 61)))
        for key in ("loss", "lr", "grad_norm", "tokens_per_second", "mfu"):
            self.assertTrue(all(isinstance(line[key], (int, float)) for line in lines), key)
        self.assertLess(lines[-1]["loss"], lines[0]["loss"] - 1)

    def test_beside_the_run_lie_its_config_and_its_tensorboard_events(self):
        self.assertIn("qwen3_moe", (run / "config.yaml").read_text(encoding="utf-8"))
        self.assertTrue(list(run.glob("events.out.tfevents.*")))

    def test_checkpoints_verify_and_a_flipped_byte_is_found(self):
        self.assertEqual(sorted(p.name for p in (run / "checkpoints").glob("step-??????")),
                         ["step-000020", "step-000040", "step-000060"])
        step = run / "checkpoints/step-000040"
        cadre("checkpoint", "verify", step)
        weights = max(step.rglob("*.safetensors"), key=lambda path: path.stat().st_size)
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        try:
            weights.write_bytes(data)
            self.assertIn(weights.name, e2e.refused("checkpoint", "verify", step, code=1))
        finally:
            data[-1] ^= 1
            weights.write_bytes(data)


class Model(unittest.TestCase):
    def test_score_is_the_log_softmax_of_the_logits(self):
        logits_file = shop.folder / "logits.safetensors"
        score = cadre_json("score", "--model", model, "--ids", "5,6,7,8,9,10", "--logits", logits_file)
        self.assertEqual(score["ids"], [5, 6, 7, 8, 9, 10])
        self.assertIsNone(score["logprobs"][0])
        (rows, width), values = read_safetensors(logits_file)["logits"]
        self.assertEqual((rows, width), (6, 512))
        for t in range(1, 6):
            row = values[(t - 1) * width:t * width]
            peak = max(row)
            lse = peak + math.log(sum(math.exp(v - peak) for v in row))
            self.assertAlmostEqual(score["logprobs"][t], row[score["ids"][t]] - lse, delta=1e-5)

    def test_quantized_keys_and_values_score_a_little_otherwise(self):
        exact, int8, int4 = (cadre_json("score", "--model", model, "--ids", "5,6,7,8,9,10,11,12",
                                        "--kv-cache-dtype", kind)["logprobs"][1:]
                             for kind in ("bf16", "int8", "int4"))
        distance = [max(abs(a - b) for a, b in zip(exact, other)) for other in (int8, int4)]
        self.assertGreater(distance[0], 0)
        self.assertLess(distance[0], 0.1)
        self.assertLess(distance[1], 0.5)

    def test_eval_is_the_mean_of_what_score_says(self):
        texts = ["the sea gave a stone. every river broke seven lamps. my brother took the word.",
                 "the wind followed caf\u00e9s \U0001f642 and a king", "a stone"]
        data = shop.folder / "eval.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        window = 8
        nll, tokens, size = 0.0, 0, 0
        for text in texts:
            ids = cadre("tokenizer", "encode", "--tokenizer", model, stdin=text).stdout.split()
            first = cadre("tokenizer", "decode", "--tokenizer", model, stdin=ids[0]).stdout
            size += len(text.encode()) - len(first.encode())
            for begin in range(0, len(ids) - 1, window):
                row = ids[begin:begin + window + 1]
                nll -= sum(cadre_json("score", "--model", model, "--ids", ",".join(row))["logprobs"][1:])
                tokens += len(row) - 1
        self.assertGreater(tokens, 2 * window)
        result = cadre_json("eval", "--model", model, "--data", data, "--seq-len", window)
        self.assertAlmostEqual(result["loss"], nll / tokens, delta=1e-6)
        self.assertAlmostEqual(result["perplexity"], math.exp(nll / tokens), delta=1e-6 * result["perplexity"])
        self.assertAlmostEqual(result["bits_per_byte"], nll / math.log(2) / size, delta=1e-6)

    def test_eval_sees_what_training_learnt(self):
        self.assertLess(cadre_json("eval", "--model", model, "--data", shop.corpus)["loss"], math.log(512) - 1)

    def test_generate_is_the_training_forward(self):
        answer = cadre_json("generate", "--model", model, "--prompt", "the sea", "--max-tokens", 24,
                            "--temperature", 0)
        self.assertTrue(answer["text"])
        self.assertEqual(len(answer["ids"]), len(answer["logprobs"]))
        self.assertIn(answer["finish_reason"], ("stop", "length"))
        prompt = cadre("tokenizer", "encode", "--tokenizer", model, stdin="the sea").stdout.split()
        ids = [*map(int, prompt), *answer["ids"]]
        score = cadre_json("score", "--model", model, "--ids", ",".join(map(str, ids)))
        self.assertEqual(score["logprobs"][len(prompt):], answer["logprobs"])

    def test_standard_output_is_one_document(self):
        out = cadre("generate", "--model", model, "--prompt-ids", "1,2,3", "--max-tokens", 4,
                    "--temperature", 0, "--json").stdout
        self.assertEqual(json.loads(out)["finish_reason"], "length")


class Server(unittest.TestCase):
    def test_raw_http_clients_are_served(self):
        with e2e.serving(model) as server:
            client = [sys.executable, e2e.ROOT / "tests/client/raw_http_test.py", "--base-url", server.url]
            if e2e.Options.long:
                client.append("--slow")
            done = subprocess.run(client, capture_output=True, timeout=600, check=False)
            self.assertEqual(done.returncode, 0, done.stderr.decode(errors="replace")[-6000:])
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(e2e.TIMEOUT), 0, server.output()[-3000:])

    def test_its_logprobs_are_those_of_the_training_forward(self):
        prompt = [5, 6, 7, 8]
        alone = cadre_json("generate", "--model", model, "--prompt-ids", "5,6,7,8", "--max-tokens", 16,
                           "--temperature", 0, "--ignore-eos")
        ids = ",".join(map(str, prompt + alone["ids"]))
        trained = cadre_json("score", "--model", model, "--ids", ids)["logprobs"][4:]
        with e2e.serving(model) as server:
            body = {"model": "model", "prompt": [prompt, [9, 10, 11], prompt], "max_tokens": 16,
                    "temperature": 0, "logprobs": 1, "ignore_eos": True}
            status, answer = e2e.post(server.port, "/v1/completions", body)
            self.assertEqual(status, 200, answer)
            for index in (0, 2):
                choice = answer["choices"][index]
                self.assertEqual(choice["text"], alone["text"])
                self.assertEqual(choice["logprobs"]["token_logprobs"], trained)

    def test_a_sigterm_lets_running_requests_finish(self):
        with e2e.serving(model) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=e2e.TIMEOUT)
            self.addCleanup(connection.close)
            body = {"model": "model", "prompt": [5, 6, 7, 8], "max_tokens": 400, "temperature": 0,
                    "stream": True, "ignore_eos": True}
            connection.request("POST", "/v1/completions", json.dumps(body),
                               {"Content-Type": "application/json"})
            response = connection.getresponse()
            self.assertEqual(response.status, 200)
            first = response.readline()
            self.assertTrue(first.startswith(b"data: "), first)
            server.send_signal(signal.SIGTERM)
            rest = response.read().decode()
            self.assertTrue(rest.rstrip().endswith("data: [DONE]"), rest[-500:])
            self.assertIn('"finish_reason":"length"', rest.replace('": "', '":"'))
            self.assertEqual(server.wait(e2e.TIMEOUT), 0, server.output()[-3000:])
            self.assertEqual(e2e.status(server.port, "/health"), 0)

    def test_a_port_in_use_is_said_in_one_line(self):
        with e2e.serving(model) as server:
            line = e2e.refused("serve", "--model", model, "--port", server.port, code=1)
            self.assertIn(str(server.port), line)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
