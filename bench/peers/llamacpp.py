"""llama.cpp against `bench_decode` and `cadre generate`, on the same GGUF files of random weights.

By hand, in a virtual environment with PyPI's `gguf` and `xllamacpp` (llama.cpp with wheels):

    python bench/peers/llamacpp.py make FILE.gguf --type q8_0 [--small]   # f32, bf16, q8_0, q4_0
    python bench/peers/llamacpp.py same FILE.gguf                         # greedy ids and logprobs
    python bench/peers/llamacpp.py speed FILE.gguf --rounds 3             # alternately with ours

`speed` prints for each round decode of one sequence, prefill of 512 tokens and decode of 32
sequences in tokens/s and ours over theirs: on a busy machine read the ratios alone.
"""

import argparse
import json
import statistics
import subprocess
import threading
import time

import numpy as np

PROMPT, SHORT, VOCABULARY = 512, 8, 32000
LARGE = dict(hidden=2048, layers=14, heads=32, inner=5632)
SMALL = dict(hidden=256, layers=2, heads=4, inner=512)


def make(path, kind, shape):
    import gguf

    types = {"f32": gguf.GGMLQuantizationType.F32, "bf16": gguf.GGMLQuantizationType.BF16,
             "q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
    hidden, heads, inner = shape["hidden"], shape["heads"], shape["inner"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape["layers"])
    writer.add_context_length(2048)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"\u2581t{i}" for i in range(VOCABULARY - len(tokens))]
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(VOCABULARY)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * (VOCABULARY - 259))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    draws = np.random.default_rng(7)

    def matrix(name, rows, columns):
        values = draws.standard_normal((rows, columns), dtype=np.float32) * (columns ** -0.5)
        data = gguf.quants.quantize(values, types[kind])
        writer.add_tensor(name, data, raw_dtype=types[kind])

    def norm(name):
        writer.add_tensor(name, np.ones(hidden, dtype=np.float32))

    matrix("token_embd.weight", VOCABULARY, hidden)
    matrix("output.weight", VOCABULARY, hidden)
    norm("output_norm.weight")
    for i in range(shape["layers"]):
        norm(f"blk.{i}.attn_norm.weight")
        norm(f"blk.{i}.ffn_norm.weight")
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            matrix(f"blk.{i}.{part}.weight", hidden, hidden)
        matrix(f"blk.{i}.ffn_gate.weight", inner, hidden)
        matrix(f"blk.{i}.ffn_up.weight", inner, hidden)
        matrix(f"blk.{i}.ffn_down.weight", hidden, inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Peer:
    def __init__(self, path, sequences, threads):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_parallel = sequences
        params.n_ctx = sequences * 1024
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.cache_prompt = False
        params.warmup = False
        self.server = xllamacpp.Server(params)

    def complete(self, ids, count, **more):
        answer = {}
        request = {"prompt": ids, "n_predict": count, "temperature": 0, "ignore_eos": True,
                   "cache_prompt": False, **more}

        def take(chunk):
            answer.update(json.loads(chunk) if isinstance(chunk, (str, bytes)) else chunk)

        result = self.server.handle_completions(request, take)
        if not answer and result is not None:
            take(result)
        if isinstance(answer.get("error"), dict):
            raise RuntimeError(answer["error"])
        return answer


def prompt(length, salt=0):
    return [1] + [300 + (i + salt) * 7919 % 31000 for i in range(length - 1)]


def ours(binary, *arguments):
    command = [f"build/release/{binary}", *map(str, arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.strip().splitlines()[-1])


def same(path, threads):
    peer = Peer(path, 1, threads)
    for length in (9, 33, 100):
        ids = prompt(length)
        theirs = peer.complete(ids, 24, logprobs=1)["choices"][0]["logprobs"]["content"]
        got = ours("cadre", "generate", "--model", path, "--prompt-ids", ",".join(map(str, ids)),
                   "--max-tokens", 24, "--ignore-eos", "--json", "--threads", threads)
        # Greedy paths part for good where two logits nearly tie.
        equal, apart = 0, []
        for token, own, logprob in zip(theirs, got["ids"], got["logprobs"]):
            if token["id"] != own:
                break
            equal += 1
            apart.append(abs(token["logprob"] - logprob))
        print(json.dumps({"prompt": length, "equal_ids": equal, "of": len(got["ids"]),
                          "largest_logprob_difference": max(apart, default=None)}))


def measure_peer(path, threads, sequences):
    one = Peer(path, 1, threads)
    times = [one.complete(prompt(PROMPT, i), 48)["timings"] for i in range(3)]
    result = {"prefill": max(t["prompt_per_second"] for t in times),
              "decode": max(t["predicted_per_second"] for t in times)}
    del one
    many = Peer(path, sequences, threads)
    # Short prompts, so that nearly all of the time is decode of all sequences together.
    ends, count = [], 48
    start = time.monotonic()
    clients = [threading.Thread(target=lambda s=s: (many.complete(prompt(SHORT, s), count),
                                                    ends.append(time.monotonic())))
               for s in range(sequences)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    result["many"] = sequences * count / (max(ends) - start)
    return result


def speed(path, rounds, threads, sequences):
    ratios = {"decode": [], "prefill": [], "many": []}
    for _ in range(rounds):
        mine = ours("bench_decode", "--model", path, "--tokens", 48, "--sequences", sequences,
                    "--context", SHORT)
        mine = {"decode": mine["decode_tokens_per_second"],
                "prefill": mine["prefill_tokens_per_second"],
                "many": mine["batch_tokens_per_second"]}
        theirs = measure_peer(path, threads, sequences)
        for key, values in ratios.items():
            values.append(mine[key] / theirs[key])
        print(json.dumps({"ours": mine, "theirs": theirs}), flush=True)
    print(json.dumps({key: {"median": statistics.median(values), "all": values}
                      for key, values in ratios.items()}))


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["make", "same", "speed"])
    parser.add_argument("path")
    parser.add_argument("--type", default="q8_0", choices=["f32", "bf16", "q8_0", "q4_0"])
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sequences", type=int, default=32)
    args = parser.parse_args()
    if args.verb == "make":
        make(args.path, args.type, SMALL if args.small else LARGE)
    elif args.verb == "same":
        same(args.path, args.threads)
    else:
        speed(args.path, args.rounds, args.threads, args.sequences)


if __name__ == "__main__":
    main()
