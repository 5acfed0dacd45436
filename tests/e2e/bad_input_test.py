#!/usr/bin/env python3
"""Bad input ends in one clear line and exit code 2 (usage, config) or 1 (anything else).

    python3 tests/e2e/bad_input_test.py [--cadre build/release/cadre] [unittest flags, test names]

Requests to a server: tests/client/hostile_cases.py. A full disk: training/checkpoint_fault_test.cc.
"""

import json
import shutil
import signal
import unittest

import e2e
from e2e import refused


def setUpModule():
    global shop, run, model
    shop = e2e.Workshop()
    run = shop.train("run", "train_steps=2", "lr_schedule.warmup_steps=1", "eval.interval=0")
    model = shop.model(run, "model")


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = e2e.temporary_folder()

    def model_copy(self):
        return shutil.copytree(model, self.folder / "model")

    def assert_says(self, line, *parts):
        for part in parts:
            self.assertIn(str(part), line)

    def score(self, folder, **kwargs):
        return refused("score", "--model", folder, "--ids", "1,2,3", "--json", **kwargs)


class Usage(Case):
    def test_wrong_usage_is_2(self):
        for arguments in ([], ["fly"], ["train"], ["score", "--model", model, "--fast"],
                          ["generate", "--model", model, "--prompt-ids", "1", "--max-tokens", "x"],
                          ["train", "-c", e2e.CONFIG, "--set", "nothing", "--output", self.folder / "o"]):
            with self.subTest(arguments=arguments):
                self.assertEqual(e2e.cadre(*arguments, code=None).returncode, 2)

    def test_a_cache_of_no_known_type_is_refused(self):
        for verb in (["score", "--ids", "1,2"], ["eval", "--data", "x"]):
            self.assertEqual(refused(*verb, "--model", model, "--kv-cache-dtype", "int3"),
                             "--kv-cache-dtype int3: allowed are auto, bf16, int8 and int4")
        line = refused("serve", "--model", model, "--port", 0, "--dtype", "f32",
                       "--set", "kv_cache_dtype=bf16")
        self.assertEqual(line, "kv_cache_dtype bf16: the model computes in f32, allowed are auto, int8 and int4")

    def test_a_verb_that_is_none_is_named(self):
        self.assertEqual(refused("trian", code=2), "trian: no verb of cadre; did you mean train?")
        self.assertEqual(refused("checkpoint", "verfy", "x", code=2),
                         "verfy: no verb of checkpoint; did you mean verify?")
        self.assert_says(refused("fly", code=2), "fly: no verb of cadre; allowed: ", "train", "serve")

    def test_what_is_not_expected_stands_in_order(self):
        self.assertEqual(refused("train", "-c", e2e.CONFIG, "runs/a", "--ouput", "runs/b", code=2),
                         "train: not expected: runs/a --ouput runs/b; --ouput: did you mean --output?; "
                         "--help says more")

    def test_help_is_0(self):
        self.assertIn("train", e2e.cadre("--help").stdout)


class Configs(Case):
    def train(self, *overrides, config=None, code=2):
        arguments = shop.train_arguments(self.folder / "out", *overrides)
        if config:
            arguments[2] = config
        return refused(*arguments, code=code)

    def test_a_typing_error_names_file_line_and_field(self):
        config = self.folder / "typo.yaml"
        config.write_text("train_steps: 2\noptimizer:\n  learning_rat: 1\n", encoding="utf-8")
        self.assert_says(self.train(config=config), "typo.yaml", "3", "learning_rat")

    def test_a_value_out_of_bounds_names_the_bounds(self):
        self.assert_says(self.train("optimizer.beta1=1.5"), "beta1", "1.5", "0", "1")

    def test_an_unknown_architecture_is_named(self):
        self.assert_says(self.train("model.model_type=rwkv9"), "rwkv9", "llama", "qwen3_moe")

    def test_impossible_shapes_are_named(self):
        self.assert_says(self.train("model.num_key_value_heads=3"), "num_key_value_heads", "3")
        self.assert_says(self.train("model.num_experts_per_tok=9"), "num_experts_per_tok", "9")

    def test_a_tokenizer_that_is_not_there_is_named(self):
        self.assert_says(self.train(f"tokenizer={self.folder}"), "tokenizer: ", self.folder, "no tokenizer.json")

    def test_what_needs_a_gpu_says_so(self):
        self.assert_says(self.train("device=cuda"), "device: cuda", "CPU")
        self.assert_says(self.train("comm.transport=nccl"), "comm.transport: nccl", "GPUs",
                         "auto, shm and ucx")

    def test_a_missing_config_is_named(self):
        self.assert_says(refused("train", "-c", self.folder / "no.yaml", "--output", self.folder / "o",
                                 code=2), "no.yaml")

    def test_data_and_models_that_are_not_there_are_named(self):
        self.assert_says(self.train("data.sources[0].path=/nope/tokens"),
                         "data.sources[0].path: /nope/tokens.idx")
        for field in ("model_path", "init_from"):
            self.assert_says(self.train("model=null", f"{field}=/nope"), f"{field}: /nope/config.json")

    def test_what_memory_24_means_is_asked(self):
        for memory in ("24", "0", "24KiB"):
            self.assert_says(refused("plan", "-c", e2e.CONFIG, "--memory", memory, code=2), "--memory",
                             "at least 1 MiB", "24GiB")

    def test_a_list_without_brackets(self):
        self.assert_says(self.train("parallel.pipeline_split=1,1"), "parallel.pipeline_split",
                         "a list is written [1,1]")

    def test_an_output_that_cannot_be_written_may_be_tried_again(self):
        (self.folder / "out").touch()
        self.assert_says(self.train(code=1), "out")

    def test_no_model_is_said_alike_by_all(self):
        config = self.folder / "none.yaml"
        config.write_text("train_steps: 2\n", encoding="utf-8")
        line = "model, model_path, init_from: 0 of them are given, exactly one is needed"
        train = ("train", "-c", config, "--output", self.folder / "out")
        for command in (train, ("launch", "--nproc-per-node", 2, *train), ("plan", "-c", config)):
            with self.subTest(command=command):
                self.assertEqual(refused(*command, code=2), line)


class OutputFolders(Case):
    """Two runs in one folder would mix their checkpoints and metrics."""

    def start(self):
        return self.enterContext(e2e.running(*shop.train_arguments(self.folder / "out", "train_steps=100000")))

    def waiting(self):
        second = self.start()
        e2e.wait_until(lambda: "held by process" in second.output(), second, "it waits for the other run")
        return second

    def steps(self):
        return [line["step"] for line in e2e.metrics(self.folder / "out")]

    def test_one_run_at_a_time(self):
        first = self.start()
        e2e.wait_until(lambda: len(self.steps()) >= 3, first, "some steps")
        second = self.waiting()
        self.assertIn(f"held by process {first.pid} on ", second.output())
        second.send_signal(signal.SIGINT)
        self.assertEqual(second.wait(e2e.TIMEOUT), 1)
        self.assert_says(second.output(), "error: another run is in the output folder: ", f"process {first.pid}")
        third = self.waiting()
        first.send_signal(signal.SIGINT)
        self.assertEqual(first.wait(e2e.TIMEOUT), 0, first.output())
        done = len(self.steps())
        e2e.wait_until(lambda: len(self.steps()) >= done + 3, third, "it goes on")
        self.assertIn("resumed from", third.output())
        third.send_signal(signal.SIGINT)
        self.assertEqual(third.wait(e2e.TIMEOUT), 0, third.output())
        self.assertEqual(self.steps(), list(range(1, len(self.steps()) + 1)))


class ModelFolders(Case):
    def test_a_missing_folder_is_named(self):
        self.assert_says(self.score(self.folder / "none"), "none")

    def test_missing_weights_are_named(self):
        folder = self.model_copy()
        for path in folder.glob("*.safetensors*"):
            path.unlink()
        self.assert_says(self.score(folder, code=1), folder)

    def test_torn_weights_are_named(self):
        folder = self.model_copy()
        weights = max(folder.glob("*.safetensors"), key=lambda path: path.stat().st_size)
        data = weights.read_bytes()
        for size in (0, 7, 100, len(data) // 2, len(data) - 1):
            weights.write_bytes(data[:size])
            self.assert_says(self.score(folder, code=1), weights.name)

    def test_configs_that_fit_no_model_are_refused(self):
        for key, value in (("model_type", "rwkv9"), ("hidden_size", 0), ("num_key_value_heads", 3),
                           ("hidden_size", "wide"), ("vocab_size", 100)):
            with self.subTest(key=key, value=value):
                folder = shutil.copytree(model, self.folder / f"{key}-{value}")
                config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
                config[key] = value
                (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
                self.assertTrue(self.score(folder))

    def test_a_folder_that_cannot_be_served_never_gets_ready(self):
        folder = self.model_copy()
        (folder / "config.json").write_text("{", encoding="utf-8")
        self.assert_says(refused("serve", "--model", folder, "--port", 0), "config.json")


class Text(Case):
    def test_dangling_merges_are_named(self):
        folder = self.model_copy()
        path = folder / "tokenizer.json"
        tokenizer = json.loads(path.read_text(encoding="utf-8"))
        tokenizer["model"]["merges"].append(["\u0120zzz", "qqq"])
        path.write_text(json.dumps(tokenizer), encoding="utf-8")
        self.assert_says(refused("tokenizer", "encode", "--tokenizer", folder, stdin="a", code=1),
                         "tokenizer.json", "merges")

    def test_an_empty_corpus_is_named(self):
        corpus = self.folder / "empty.txt"
        corpus.touch()
        self.assert_says(refused("data", "build", "--tokenizer", shop.tokenizer, "--input", corpus,
                                 "--output", self.folder / "tokens"), "empty.txt")
        self.assertFalse((self.folder / "tokens.idx").exists())

    def test_invalid_utf8_is_named_with_its_place(self):
        corpus = self.folder / "latin1.txt"
        corpus.write_bytes(b"caf\xe9 au lait\n")
        self.assert_says(refused("data", "build", "--tokenizer", shop.tokenizer, "--input", corpus,
                                 "--output", self.folder / "tokens"), "latin1.txt", "UTF-8")
        self.assert_says(refused("tokenizer", "encode", "--tokenizer", shop.tokenizer,
                                 stdin=b"caf\xe9", code=1), "UTF-8", "3")

    def test_prompts_that_are_no_ids_of_the_model(self):
        self.assert_says(refused("score", "--model", model, "--ids", "1,512", "--json"), "512")
        self.assert_says(refused("generate", "--model", model, "--prompt-ids", "1,-1", "--max-tokens", 2),
                         "-1")

    def test_a_prompt_over_the_context(self):
        ids = ",".join(["1"] * 600)
        self.assert_says(refused("generate", "--model", model, "--prompt-ids", ids, "--max-tokens", 2),
                         "512")


class Checkpoints(Case):
    def test_a_run_its_checkpoints_and_one_of_them_are_all_taken(self):
        newest = run / "checkpoints/step-000002"
        for path in (run, run / "checkpoints", newest):
            with self.subTest(path=path):
                for verb in ("inspect", "verify"):
                    self.assertEqual(e2e.cadre_json("checkpoint", verb, path)["path"], str(newest))
                target = self.folder / f"from-{path.name}"
                self.assertEqual(e2e.cadre_json("checkpoint", "convert", path, "--to", target)["from"],
                                 str(newest))
                done = e2e.cadre("generate", "--model", path, "--prompt-ids", "1", "--max-tokens", 1)
                said = "" if path == newest else f"--model {path}: {newest} is taken\n"
                self.assertEqual(done.stderr, said)
        self.assert_says(refused("checkpoint", "inspect", self.folder), self.folder, "no checkpoint there")

    def test_no_checkpoint_there(self):
        self.assert_says(refused("checkpoint", "verify", self.folder), self.folder)

    def test_a_torn_manifest_is_named(self):
        step = shutil.copytree(e2e.last_checkpoint(run), self.folder / "step-000002")
        manifest = step / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:-20])
        self.assert_says(refused("checkpoint", "verify", step, code=1), "manifest.json")

    def test_converting_does_not_overwrite_what_is_there(self):
        step, target = e2e.last_checkpoint(run), self.folder / "taken"
        target.mkdir()
        (target / "notes.txt").write_text("mine", encoding="utf-8")
        done = e2e.cadre("checkpoint", "convert", step, "--to", target, code=None)
        self.assertEqual((target / "notes.txt").read_text(encoding="utf-8"), "mine")
        self.assertIn(done.returncode, (0, 1, 2))
        e2e.cadre("checkpoint", "verify", step)


if __name__ == "__main__":
    unittest.main(argv=e2e.parse())
