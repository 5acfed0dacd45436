#!/usr/bin/env python3
"""Opens a folder that Cadre saved in transformers and compares the two forwards.

    python check_export.py MODEL_DIR [--cadre build/release/cadre] [--ids 1,2,3] [--dtype f32|bf16]
    python check_export.py MODEL_DIR --ids 1,2,3 --logits FILE      # FILE of an earlier `cadre score`

Also checks that transformers finds every tensor that it wants and none that it does not know.
Exit code 0: within the tolerance; 1: not; the largest difference is printed either way, relative to
the largest logit. Needs the packages in requirements.txt; run by hand.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import safetensors
import torch
import transformers

TOLERANCE = {"f32": 1e-4, "bf16": 3e-2}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=pathlib.Path)
    parser.add_argument("--cadre", default="build/release/cadre")
    parser.add_argument("--ids", help="token ids, separated by commas (default: 32 spread ids)")
    parser.add_argument("--logits", type=pathlib.Path, help="do not run cadre, read this file")
    parser.add_argument("--dtype", choices=sorted(TOLERANCE), default="f32")
    parser.add_argument("--tolerance", type=float)
    return parser.parse_args()


def default_ids(model_dir):
    vocab = json.loads((model_dir / "config.json").read_text())["vocab_size"]
    return [(7 * i * i + 3 * i + 5) % vocab for i in range(32)]


def cadre_logits(args, ids, file):
    command = [args.cadre, "score", "--model", str(args.model), "--ids", ",".join(map(str, ids))]
    command += ["--logits", str(file), "--dtype", args.dtype, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr}")
    scored = json.loads(done.stdout)
    if scored["ids"] != ids or scored["logprobs"][0] is not None:
        sys.exit(f"score --json does not repeat the ids or has a first logprob: {done.stdout[:300]}")
    return scored["logprobs"]


def read_logits(file):
    with safetensors.safe_open(file, "pt") as opened:
        if list(opened.keys()) != ["logits"]:
            sys.exit(f"{file}: tensors {list(opened.keys())}, expected one, `logits`")
        logits = opened.get_tensor("logits")
    if logits.dtype != torch.float32:
        sys.exit(f"{file}: logits are {logits.dtype}, expected f32")
    return logits


def reference_logits(args, ids):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        args.model, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            sys.exit(f"{args.model}: {kind}: {sorted(info[kind])[:5]}")
    with torch.no_grad():
        return model.eval()(torch.tensor([ids]), use_cache=False).logits[0].float()


def check_logprobs(logprobs, logits, ids, tolerance):
    """score's logprobs must be the log-softmax of its own logits."""
    expected = torch.log_softmax(logits.double(), dim=-1)
    rows = torch.arange(len(ids) - 1)
    gap = (torch.tensor(logprobs[1:]).double() - expected[rows, ids[1:]]).abs().max().item()
    if not gap <= tolerance:
        sys.exit(f"logprobs differ by {gap:.3g} from the log-softmax of the logits")


def main():
    args = parse_args()
    if not (args.model / "config.json").is_file():
        sys.exit(f"{args.model}: no config.json")
    if args.logits and not args.ids:
        sys.exit("--logits needs the --ids that it was made from")
    ids = [int(i) for i in args.ids.split(",")] if args.ids else default_ids(args.model)
    tolerance = args.tolerance or TOLERANCE[args.dtype]
    if args.logits:
        logits = read_logits(args.logits)
    else:
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "logits.safetensors"
            logprobs = cadre_logits(args, ids, file)
            logits = read_logits(file)
        check_logprobs(logprobs, logits, ids, 1e-5)
    expected = reference_logits(args, ids)
    if logits.shape != expected.shape:
        sys.exit(f"logits are {tuple(logits.shape)}, transformers' {tuple(expected.shape)}")
    gap = ((logits - expected).abs().max() / expected.abs().max()).item()
    verdict = "ok" if gap <= tolerance else "FAILED"
    print(json.dumps({"gap": gap, "tolerance": tolerance, "tokens": len(ids), "result": verdict}))
    return 0 if gap <= tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
