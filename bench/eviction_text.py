#!/usr/bin/env python3
"""Python programs of this machine as texts for bench_eviction: names and lines come again and again,
so what stood far before a line helps to guess it.

  eviction_text.py train FOLDER... > train.jsonl         {"text": ...} a line
  eviction_text.py copies COUNT LENGTH FOLDER... > copies.jsonl
  eviction_text.py test COUNT FOLDER... > test.jsonl     {"prompt": ..., "tail": ...} a line
  eviction_text.py recall COUNT FOLDER... > recall.jsonl

No file gives to both. A prompt is 3,300 characters of a file (about 1,000 tokens of a tokenizer of
4,096 that was trained on the same), a tail the 160 after it, both from a line's start. In a text of
`recall` the prompt ends within the repetition of a part that stands at its start, with 1,400 characters
of another file between, and the tail goes on with the part. Beside every second file of `train` stands
a text in which a part comes twice like that; `copies` are COUNT texts of about LENGTH characters that
repeat a part of an eighth to a third of that again and again, with other files between. A small model
learns to copy from short ones first (900, in sequences of 256), then from long ones (3,600)."""
import hashlib
import json
import pathlib
import random
import sys

PROMPT, TAIL, COPIED = 3300, 160, 1500


def files(folders):
    """(file's text, whether it is for tests), every text once."""
    seen = set()
    for path in sorted(p for folder in folders for p in pathlib.Path(folder).rglob("*.py")):
        try:
            text = path.read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(text.encode()).digest()
        if len(text) >= 2 * PROMPT and digest not in seen:
            seen.add(digest)
            yield text, digest[0] < 16


def line_start(text, at):
    return text.find("\n", at) + 1 or len(text)


def train(folders):
    rng = random.Random(1)
    texts = [text for text, tested in files(folders) if not tested]
    rng.shuffle(texts)
    for text in texts:
        print(json.dumps({"text": text}))
        if rng.random() < 0.5:
            begin = line_start(text, rng.randrange(len(text) - COPIED))
            part, other = text[begin:begin + COPIED], rng.choice(texts)[:rng.randrange(COPIED)]
            print(json.dumps({"text": f"{part}\n{other}\n{part}"}))


def copies(count, length, folders):
    rng = random.Random(4)
    texts = [text for text, tested in files(folders) if not tested]

    def piece(size):
        text = rng.choice(texts)
        begin = rng.randrange(len(text) - size)
        return text[begin:begin + size]

    for _ in range(count):
        part = text = piece(rng.randint(length // 8, length // 3))
        while len(text) < length:
            text += "\n" + piece(rng.randint(length // 50, length // 3)) + "\n" + part
        print(json.dumps({"text": text}))


def test(count, folders):
    rng = random.Random(2)
    texts = [text for text, tested in files(folders) if tested]
    for i in range(count):
        text = texts[i % len(texts)]
        begin = line_start(text, rng.randrange(len(text) - PROMPT - 2 * TAIL))
        end = line_start(text, begin + PROMPT)
        if end + TAIL > len(text):
            begin = line_start(text, len(text) - PROMPT - 3 * TAIL)
            end = begin + PROMPT
        print(json.dumps({"prompt": text[begin:end], "tail": text[end:end + TAIL]}))


def recall(count, folders):
    rng = random.Random(3)
    texts = [text for text, tested in files(folders) if tested]
    for i in range(count):
        text, other = texts[i % len(texts)], rng.choice(texts)
        begin = line_start(text, rng.randrange(len(text) - 2 * COPIED))
        part, between = text[begin:begin + COPIED], other[line_start(other, COPIED):][:1400]
        again = line_start(part, 400)
        print(json.dumps({"prompt": f"{part}\n{between}\n{part[:again]}",
                          "tail": part[again:again + TAIL]}))


if sys.argv[1] == "train":
    train(sys.argv[2:])
elif sys.argv[1] == "copies":
    copies(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
else:
    {"test": test, "recall": recall}[sys.argv[1]](int(sys.argv[2]), sys.argv[3:])
