#!/usr/bin/env python3
"""Training speed of PyTorch on the model shapes that bench/train_step measures.

Run by hand, alternately with bench/train_step, on an otherwise idle machine:

    pip install torch==2.8.0 (its CPU build)   # and numpy
    python bench/peers/pytorch_train.py --model dense|moe [--steps 5] [--compile]

The peer is written the way that a careful user of PyTorch would: bf16 weights and activations, f32
master weights in a fused AdamW (or bf16 autocast over f32 weights, --precision autocast), SDPA
attention on whole sequences, one matmul for q/k/v and one for gate/up, tokens grouped by expert in the
mixture, and the loss in chunks of rows (their logits are kept, recomputing them would cost a matmul).
A step is --tokens tokens in sequences of --seq, by gradient accumulation over --micro-batch
sequences, with clipping at 1.0. Prints one JSON document: tokens_per_second and
step_seconds are medians over the timed steps.
"""

import argparse
import json
import os
import statistics
import sys
import time

SHAPES = {
    # 162M parameters
    "dense": dict(hidden=768, layers=12, heads=12, kv_heads=12, intermediate=3072, experts=0),
    # the same active size: two experts of half the width for each token
    "moe": dict(hidden=768, layers=12, heads=12, kv_heads=12, intermediate=1536, experts=8),
}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(SHAPES), default="dense")
    parser.add_argument("--precision", choices=["pure", "autocast"], default="pure")
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a compiler)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="timed steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument("--seq", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens a step")
    parser.add_argument("--micro-batch", type=int, default=4, help="sequences a forward")
    parser.add_argument("--loss-chunk", type=int, default=1024, help="rows of logits at a time")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--top-k", type=int, default=2)
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--tied", action="store_true", help="output layer shares the embedding")
    for key in SHAPES["dense"]:
        parser.add_argument(f"--{key.replace('_', '-')}", type=int, help="overrides the shape")
    args = parser.parse_args()
    for key, value in SHAPES[args.model].items():
        if getattr(args, key) is None:
            setattr(args, key, value)
    if args.tokens % (args.seq * args.micro_batch):
        parser.error("--tokens must be a multiple of --seq times --micro-batch")
    return args


ARGS = parse_args() if __name__ == "__main__" else None
if ARGS:  # before torch loads its thread pool
    os.environ["OMP_NUM_THREADS"] = str(ARGS.threads)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402


def rotary(seq, dim, theta=10000.0):
    frequencies = theta ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(seq, dtype=torch.float32), frequencies)
    return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()


def rotate(x, cos, sin):
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


class Attention(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.heads, self.kv_heads = args.heads, args.kv_heads
        self.dim = args.hidden // args.heads
        out = (args.heads + 2 * args.kv_heads) * self.dim
        self.qkv = nn.Linear(args.hidden, out, bias=False)
        self.out = nn.Linear(args.heads * self.dim, args.hidden, bias=False)

    def forward(self, x, cos, sin):
        batch, seq, _ = x.shape
        qkv = self.qkv(x).view(batch, seq, -1, self.dim).transpose(1, 2)
        q, k, v = qkv.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.heads != self.kv_heads
        )
        return self.out(y.transpose(1, 2).reshape(batch, seq, -1))


class Mlp(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.gate_up = nn.Linear(args.hidden, 2 * args.intermediate, bias=False)
        self.down = nn.Linear(args.intermediate, args.hidden, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Mixture(nn.Module):
    """Top-k over a softmax in f32; rows sorted by expert, one pair of matmuls an expert."""

    def __init__(self, args):
        super().__init__()
        self.top_k = args.top_k
        self.router = nn.Linear(args.hidden, args.experts, bias=False)
        self.experts = nn.ModuleList(Mlp(args) for _ in range(args.experts))

    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        scores = F.softmax(F.linear(x.float(), self.router.weight.float()), dim=-1)
        weights, ids = scores.topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        order = ids.reshape(-1).argsort(stable=True)
        counts = torch.bincount(ids.reshape(-1), minlength=len(self.experts)).tolist()
        rows = order // self.top_k
        parts = [e(p) for e, p in zip(self.experts, x[rows].split(counts))]
        scaled = torch.cat(parts).float() * weights.reshape(-1)[order, None]
        out = torch.zeros(x.shape, dtype=torch.float32).index_add(0, rows, scaled)
        return out.to(x.dtype).view(shape)


class Block(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.norm1, self.norm2 = (nn.RMSNorm(args.hidden, eps=1e-5) for _ in range(2))
        self.attention = Attention(args)
        self.mlp = Mixture(args) if args.experts else Mlp(args)

    def forward(self, x, cos, sin):
        x = x + self.attention(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.chunk = args.loss_chunk
        self.embedding = nn.Embedding(args.vocab, args.hidden)
        self.blocks = nn.ModuleList(Block(args) for _ in range(args.layers))
        self.norm = nn.RMSNorm(args.hidden, eps=1e-5)
        self.head = nn.Linear(args.hidden, args.vocab, bias=False)
        if args.tied:
            self.head.weight = self.embedding.weight
        cos, sin = rotary(args.seq, args.hidden // args.heads)
        self.register_buffer("cos", cos)
        self.register_buffer("sin", sin)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)

    def chunk_loss(self, x, targets):
        return F.cross_entropy(self.head(x).float(), targets, reduction="sum")

    def forward(self, ids, targets):
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        x = self.norm(x).flatten(0, 1)
        parts = zip(x.split(self.chunk), targets.flatten().split(self.chunk))
        return sum(self.chunk_loss(rows, labels) for rows, labels in parts)


class MasterAdamW:
    """Fused AdamW on f32 copies of bf16 parameters."""

    def __init__(self, model, lr):
        self.model = [p for p in model.parameters() if p.requires_grad]
        self.pure = self.model[0].dtype == torch.bfloat16
        self.master = [p.detach().float().requires_grad_() for p in self.model]
        if not self.pure:
            self.master = self.model
        groups = [
            dict(params=[p for p in self.master if p.dim() > 1], weight_decay=0.1),
            dict(params=[p for p in self.master if p.dim() == 1], weight_decay=0.0),
        ]
        self.adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)

    def step(self):
        if self.pure:
            for master, parameter in zip(self.master, self.model):
                master.grad = parameter.grad.float()
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(self.master, 1.0)
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        if self.pure:
            with torch.no_grad():
                torch._foreach_copy_(self.model, self.master)


def train_step(model, optimizer, batch, args):
    total = 0.0
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=args.precision == "autocast")
    for rows in batch.split(args.micro_batch):
        with autocast:
            loss = model(rows[:, :-1], rows[:, 1:]) / args.tokens
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total


def main(args):
    torch.set_num_threads(args.threads)
    torch.manual_seed(1)
    model = Model(args)
    parameters = sum(p.numel() for p in model.parameters())
    if args.precision == "pure":
        model = model.bfloat16()
    optimizer = MasterAdamW(model, args.lr)
    run = torch.compile(model) if args.compile else model
    sequences = args.tokens // args.seq
    seconds, loss = [], None
    for step in range(args.warmup + args.steps):
        batch = torch.randint(0, args.vocab, (sequences, args.seq + 1))
        start = time.perf_counter()
        loss = train_step(run, optimizer, batch, args)
        elapsed = time.perf_counter() - start
        print(f"step {step}: loss {loss:.4f}, {elapsed:.2f} s", file=sys.stderr, flush=True)
        if step >= args.warmup:
            seconds.append(elapsed)
    median = statistics.median(seconds)
    shape = {k: getattr(args, k) for k in SHAPES["dense"]}
    print(
        json.dumps(
            {
                "tokens_per_second": args.tokens / median,
                "step_seconds": median,
                "loss": loss,
                "parameters": parameters,
                "model": args.model,
                "shape": {**shape, "vocab": args.vocab, "top_k": args.top_k, "tied": args.tied},
                "seq": args.seq,
                "tokens": args.tokens,
                "threads": args.threads,
                "precision": args.precision,
                "compiled": args.compile,
                "torch": torch.__version__,
            }
        )
    )


if __name__ == "__main__":
    main(ARGS)
