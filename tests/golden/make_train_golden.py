#!/usr/bin/env python3
"""Writes fixtures/train_{llama,mixtral}/: a start, the data and what PyTorch's AdamW makes of it.

Run by hand, never in CI, with the versions in requirements.txt:  python make_train_golden.py

config.json, model.safetensors    the start, f32
train.json                        the rules of the run, `lr` of every step, names that decay, and how
                                  far the f32 run is from the same run in f64
train.safetensors
    tokens [S, T] i32             step s trains on row s: packed sequences, each with positions from 0
    lengths [S, n] i32            and no attention to its neighbours; a row's lengths add up to T
    losses [S] f32                before the update of step s: sum of the cross entropies of all
                                  predicted tokens of the row, divided by their count (T - n)
    losses_f64 [S] f64            the same of a run in f64
    grad_norm [S] f32             L2 norm over all gradients before clipping
    grad.NAME f32                 gradients of step 0 before clipping, of every parameter
"""

import json
import pathlib
import shutil

import safetensors.torch
import torch
import transformers

import golden_models
import make_golden

TOKENS_PER_STEP = 64
SEQUENCES = 3
PEAK_LR = 3e-4
ADAM = dict(betas=(0.9, 0.95), eps=1e-8)
WEIGHT_DECAY = 0.1
MAX_NORM = 1.0


def runs():
    """Per run: the golden model that it starts from, steps, and the lr of each step."""
    warmup, steps = 5, 50
    table = golden_models.specs()
    ramp = [PEAK_LR * (s + 1) / warmup for s in range(warmup)]
    halves = torch.linspace(0, torch.pi, steps - warmup, dtype=torch.float64)
    cosine = [0.1 * PEAK_LR + 0.45 * PEAK_LR * (1 + c) for c in torch.cos(halves).tolist()]
    return {
        "train_llama": (table["llama"], ramp + cosine),
        "train_mixtral": (table["mixtral"], [PEAK_LR] * 20),
    }


def make_data(vocab, steps, seed):
    """Random rows over few tokens with a skew, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.arange(1, vocab + 1, dtype=torch.float64).reciprocal()
    shape = (steps, TOKENS_PER_STEP)
    tokens = torch.multinomial(
        probabilities, steps * TOKENS_PER_STEP, replacement=True, generator=generator
    ).view(shape)
    cuts = torch.stack(
        [
            (torch.randperm(TOKENS_PER_STEP // 4 - 1, generator=generator)[: SEQUENCES - 1] + 1)
            .sort()[0]
            .mul(4)
            .sub(torch.randint(0, 3, (1,), generator=generator))
            for _ in range(steps)
        ]
    )
    edges = torch.nn.functional.pad(cuts, (1, 0), value=0)
    ends = torch.nn.functional.pad(cuts, (0, 1), value=TOKENS_PER_STEP)
    return tokens, ends - edges


def decays(name, parameter):
    return parameter.dim() >= 2 and "embed_tokens" not in name


def optimizer_of(model, lr):
    named = list(model.named_parameters())
    groups = [
        dict(params=[p for n, p in named if decays(n, p)], weight_decay=WEIGHT_DECAY),
        dict(params=[p for n, p in named if not decays(n, p)], weight_decay=0.0),
    ]
    return torch.optim.AdamW(groups, lr=lr, foreach=False, fused=False, **ADAM)


def min_gap(logits, k):
    top = logits.float().topk(k + 1, dim=-1)[0]
    return (top[..., k - 1] - top[..., k]).min().item()


def train(folder, spec, lrs, tokens, lengths, dtype):
    """One run from the saved start: losses, gradient norms, gradients of step 0, expert ids, gap."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()
    records, _ = make_golden.record_experts(model, spec)
    gaps = []
    for name, module in model.named_modules():
        if name.endswith("block_sparse_moe.gate"):
            module.register_forward_hook(lambda m, _, out: gaps.append(min_gap(out, m.cadre_top_k)))
    optimizer = optimizer_of(model, lrs[0])
    losses, norms, first = [], [], {}
    for step, lr in enumerate(lrs):
        for group in optimizer.param_groups:
            group["lr"] = lr
        total, count = 0.0, 0
        for ids in tokens[step].split(lengths[step].tolist()):
            logits = model(ids[None], use_cache=False).logits[0]
            loss = torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")
            total, count = total + loss, count + len(ids) - 1
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            first = {n: p.grad.detach().clone() for n, p in model.named_parameters()}
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item())
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, first, [ids for _, ids in records], min(gaps, default=None)


def rules(spec, model, lrs):
    return {
        "optimizer": "AdamW, decoupled: p -= lr * decay * p; m, v; p -= lr * m_hat / (sqrt(v_hat) + eps)",
        "bias_correction": "m_hat = m / (1 - b1^t), v_hat = v / (1 - b2^t), t from 1",
        "betas": list(ADAM["betas"]),
        "eps": ADAM["eps"],
        "weight_decay": WEIGHT_DECAY,
        "decay_rule": "every matrix but model.embed_tokens.weight (lm_head decays); no 1-D parameter",
        "decay": [n for n, p in model.named_parameters() if decays(n, p)],
        "clip": "if norm > max_norm, every gradient times max_norm / (norm + 1e-6)",
        "max_norm": MAX_NORM,
        "aux_loss": "off",
        "lr": lrs,
        "seed": spec.seed,
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
    }


def make(name, spec, lrs):
    folder = make_golden.FIXTURES / name
    shutil.rmtree(folder, ignore_errors=True)
    model = golden_models.build(spec)
    model.save_pretrained(folder)
    tokens, lengths = make_data(model.config.vocab_size, len(lrs), spec.seed)
    losses, norms, grads, ids, gap = train(folder, spec, lrs, tokens, lengths, torch.float32)
    exact, _, grads64, ids64, _ = train(folder, spec, lrs, tokens, lengths, torch.float64)
    if not all(torch.equal(a, b) for a, b in zip(ids, ids64, strict=True)):
        raise SystemExit(f"{name}: f32 and f64 choose different experts; take another seed")
    gaps = {
        "loss_gap_f32_f64": max(abs(a - b) / b for a, b in zip(losses, exact)),
        "grad_gap_f32_f64": max(make_golden.relative(g, grads64[n]) for n, g in grads.items()),
        "smallest_router_logit_gap": gap,
    }
    (folder / "train.json").write_text(json.dumps({**rules(spec, model, lrs), **gaps}, indent=1))
    tensors = {
        "tokens": tokens.int(),
        "lengths": lengths.int(),
        "losses": torch.tensor(losses, dtype=torch.float32),
        "losses_f64": torch.tensor(exact, dtype=torch.float64),
        "grad_norm": torch.tensor(norms, dtype=torch.float32),
        **{f"grad.{n}": g.float().contiguous() for n, g in grads64.items()},
    }
    safetensors.torch.save_file(tensors, folder / "train.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(f.stat().st_size for f in folder.iterdir())
    if size > make_golden.SIZE_LIMIT:
        raise SystemExit(f"{name}: {size} bytes, limit {make_golden.SIZE_LIMIT}")
    print(name, size, "bytes", losses[0], losses[-1], "norms", norms[0], norms[-1], gaps)


def main():
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for name, (spec, lrs) in runs().items():
        make(name, spec, lrs)


if __name__ == "__main__":
    main()
