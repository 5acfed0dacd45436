#!/usr/bin/env python3
"""What any layout saved is one process's model: it scores as that one's, and it is served.

    python3 tests/e2e/layout_export_test.py [--cadre PROGRAM] [--all] [--keep FOLDER] [unittest flags]

`--keep` leaves the models there, for tests/golden/check_export.py.
"""

import argparse
import pathlib
import shutil
import sys
import unittest

import e2e

TENSOR = "parallel.tensor_parallel_size"
PIPELINE = "parallel.pipeline_parallel_size"
EXPERT = "parallel.expert_parallel_size"
ZERO = "parallel.zero_stage"
SCHEDULE = "parallel.pipeline_schedule"
MIXTURE = ("micro_batch_size=1",)
FOUR_LAYERS = (*MIXTURE, "model.num_hidden_layers=4")
LADDER = (*FOUR_LAYERS, "model.residual=ladder", "model.tie_word_embeddings=false")

# {name: (model, ranks, layout)}; --all adds the second.
LAYOUTS = {
    "tp2-dp2-zero1": (MIXTURE, 4, (f"{TENSOR}=2", f"{ZERO}=1")),
    "pp2-zbv": (FOUR_LAYERS, 2, (f"{PIPELINE}=2", f"{SCHEDULE}=zb_v")),
    "ep4-zero3": (MIXTURE, 4, (f"{EXPERT}=4", f"{ZERO}=3")),
    "ladder-tp2": (LADDER, 2, (f"{TENSOR}=2",)),
}
LONG_LAYOUTS = {
    "pp4-1f1b": (FOUR_LAYERS, 4, (f"{PIPELINE}=4",)),
    "pp2-dp2-interleaved": (FOUR_LAYERS, 4, (f"{PIPELINE}=2", f"{SCHEDULE}=interleaved_1f1b", f"{ZERO}=2")),
    "pp2-ep2-zero3": (FOUR_LAYERS, 4, (f"{PIPELINE}=2", f"{EXPERT}=2", f"{ZERO}=3", f"{SCHEDULE}=zb_h1")),
    "tp2-ep2-etp2": (MIXTURE, 4, (f"{TENSOR}=2", f"{EXPERT}=2", "parallel.expert_tensor_parallel_size=2")),
    "tp2-ep4": (MIXTURE, 4, (f"{TENSOR}=2", f"{EXPERT}=4", "parallel.expert_tensor_parallel_size=1")),
    "cp2-hybrid": (MIXTURE, 8, ("parallel.context_parallel_size=2", f"{ZERO}=3",
                                "parallel.zero_group_size=4")),
    "ladder-tp2-pp2": (LADDER, 4, (f"{TENSOR}=2", f"{PIPELINE}=2")),
}  # fmt: skip


class Options:
    keep = None


class LayoutExport(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.workshop = e2e.Workshop()
        cls.alone = {}

    def model(self, name, *overrides, ranks=1):
        settings = ("dtype=f32", "train_steps=20", *overrides)
        folder = self.workshop.folder / f"run-{name}"
        train = self.workshop.train_arguments(folder, *settings)
        e2e.cadre(*(["launch", "--nproc-per-node", ranks, *train] if ranks > 1 else train))
        model = self.workshop.model(folder, name)
        if Options.keep:
            shutil.copytree(model, Options.keep / name, dirs_exist_ok=True)
        return model

    def loss(self, model):
        return e2e.cadre_json("eval", "--model", model, "--data", self.workshop.corpus, "--dtype", "f32",
                              "--seq-len", 128)["loss"]

    def loss_alone(self, overrides):
        if overrides not in self.alone:
            self.alone[overrides] = self.loss(self.model(f"alone-{len(self.alone)}", *overrides))
        return self.alone[overrides]

    def check_served(self, model):
        """The server's logprobs are those of the training forward, bit for bit."""
        prompt = [5, 6, 7, 8]
        with e2e.serving(model) as server:
            body = {"model": model.name, "prompt": prompt, "max_tokens": 12, "temperature": 0,
                    "logprobs": 1, "ignore_eos": True}
            status, answer = e2e.post(server.port, "/v1/completions", body)
            self.assertEqual(status, 200, answer)
        choice = answer["choices"][0]
        alone = e2e.cadre_json("generate", "--model", model, "--prompt-ids", "5,6,7,8", "--max-tokens", 12,
                               "--temperature", 0, "--ignore-eos")
        self.assertEqual(choice["text"], alone["text"])
        ids = ",".join(map(str, prompt + alone["ids"]))
        trained = e2e.cadre_json("score", "--model", model, "--ids", ids)["logprobs"][len(prompt):]
        self.assertEqual(choice["logprobs"]["token_logprobs"], trained)

    def test_a_checkpoint_of_any_layout_is_served(self):
        layouts = {**LAYOUTS, **(LONG_LAYOUTS if e2e.Options.long else {})}
        for name, (overrides, ranks, layout) in layouts.items():
            with self.subTest(name):
                model = self.model(name, *overrides, *layout, ranks=ranks)
                expected = self.loss_alone(overrides)
                self.assertLess(abs(self.loss(model) - expected), 1e-4 * expected)
                self.check_served(model)


def parse():
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--keep", type=pathlib.Path)
    args, sys.argv[1:] = parser.parse_known_args()
    Options.keep = args.keep
    return e2e.parse()


if __name__ == "__main__":
    unittest.main(argv=parse())
