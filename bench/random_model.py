#!/usr/bin/env python3
"""A llama of random bf16 weights as a Hugging Face folder, without its tokenizer: for measuring speed.

    random_model.py FOLDER VOCABULARY HIDDEN INTERMEDIATE LAYERS HEADS KV_HEADS

Projections are of either sign and of 2^-7 to 2^-6, norms are 1."""
import json
import pathlib
import random
import struct
import sys

# The upper byte of a bf16: its sign at random, the exponent of 2^-7.
UPPER = bytes(0x3C if byte < 128 else 0xBC for byte in range(256))


def shapes(vocabulary, hidden, intermediate, layers, heads, kv_heads):
    width = hidden // heads * kv_heads
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name, rows, columns in (("q", hidden, hidden), ("k", width, hidden), ("v", width, hidden),
                                    ("o", hidden, hidden)):  # fmt: skip
            yield f"{at}self_attn.{name}_proj.weight", (rows, columns)
        for name, rows, columns in (("gate", intermediate, hidden), ("up", intermediate, hidden),
                                    ("down", hidden, intermediate)):  # fmt: skip
            yield f"{at}mlp.{name}_proj.weight", (rows, columns)
        yield f"{at}input_layernorm.weight", (hidden,)
        yield f"{at}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def weights(rng, shape):
    if len(shape) == 1:
        return struct.pack("<H", 0x3F80) * shape[0]
    data = bytearray(rng.randbytes(2 * shape[0] * shape[1]))
    data[1::2] = data[1::2].translate(UPPER)
    return data


def main(folder, *sizes):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, hidden, intermediate, layers, heads, kv_heads = map(int, sizes)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
              "vocab_size": vocabulary, "hidden_size": hidden, "intermediate_size": intermediate,
              "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
              "max_position_embeddings": 4096, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    header, at = {}, 0
    named = dict(shapes(vocabulary, hidden, intermediate, layers, heads, kv_heads))
    for name, shape in named.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = random.Random(1)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in named.values():
            file.write(weights(rng, shape))


if len(sys.argv) != 8:
    sys.exit(__doc__)
main(*sys.argv[1:])
