#!/usr/bin/env python3
"""Python programs of this machine as texts for bench_eviction: names and lines come again and again,
so what stood far before a line helps to guess it.

  eviction_text.py train FOLDER... > train.jsonl         {"text": ...} a line
  eviction_text.py copies COUNT LENGTH FOLDER... > copies.jsonl
  eviction_text.py test COUNT FOLDER... > test.jsonl     {"prompt": ..., "tail": ...} a line
  eviction_text.py recall COUNT FOLDER... > recall.jsonl
  eviction_text.py facts COUNT LENGTH FOLDER... > facts.jsonl
  eviction_text.py lookup COUNT FOLDER... > lookup.jsonl
  eviction_text.py tune COUNT FOLDER... > tune.jsonl

No file gives to both. A prompt is 3,300 characters of a file (about 1,000 tokens of a tokenizer of
4,096 that was trained on the same), a tail the 160 after it, both from a line's start. In a text of
`recall` the prompt ends within the repetition of a part that stands at its start, with 1,400 characters
of another file between, and the tail goes on with the part. Beside every second file of `train` stands
a text in which a part comes twice like that; `copies` are COUNT texts of about LENGTH characters that
repeat a part of an eighth to a third of that again and again, with other files between. A small model
learns to copy from short ones first (900, in sequences of 256), then from long ones (3,600).

In a text of `lookup` sixteen lines `note NAME is VALUE` stand anywhere in a prompt of 3,000 characters,
whose end asks for four of them in one line; the tail answers. So what the tail needs is what the
prompt's last tokens look at, as in a document with a question about it, and it is far from them.
`facts` are COUNT such texts to train on, about LENGTH characters long, that ask again and again, and
`tune` is like `lookup` of the files of `train`: what a policy's constants may be chosen on."""
import hashlib
import json
import pathlib
import random
import re
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


def notes(rng, words, texts, length, count):
    """`count` facts, and lines of programs of about `length` characters with the facts' notes among them."""
    text = rng.choice(texts)
    begin = rng.randrange(max(len(text) - length, 1))
    lines = text[begin:begin + length].split("\n")[1:]
    names = rng.sample(words, 2 * count)
    facts = list(zip(names[:count], names[count:]))
    for name, value in facts:
        lines.insert(rng.randrange(len(lines) + 1), f"note {name} is {value}")
    return facts, lines


def questions(rng, facts, count):
    asked = rng.sample(facts, count)
    return (f"ask {' '.join(name for name, _ in asked)}\n",
            "".join(f"{name} is {value}\n" for name, value in asked))


def words_of(texts):
    """Whole words of the programs, for names and values."""
    words = {word for text in texts for word in re.findall(r"\b[a-z]{4,9}\b", text)}
    return sorted(words)


def facts(count, length, folders):
    rng = random.Random(5)
    texts = [text for text, tested in files(folders) if not tested]
    words = words_of(texts)
    for _ in range(count):
        known, text, pieces = [], "", max(1, length // 900)
        for _ in range(pieces):
            new, lines = notes(rng, words, texts, length // (2 * pieces), 4)
            known += new
            ask, answer = questions(rng, known, min(4, len(known)))
            text += "\n".join(lines) + "\n" + ask + answer
        while len(text) < length:
            ask, answer = questions(rng, known, min(4, len(known)))
            text += ask + answer
        print(json.dumps({"text": text}))


def lookup(count, folders, seed=6, of_tests=True):
    rng = random.Random(seed)
    both = list(files(folders))
    texts = [text for text, tested in both if tested == of_tests]
    words = words_of(text for text, _ in both)
    for _ in range(count):
        known, lines = notes(rng, words, texts, 2500, 16)
        ask, answer = questions(rng, known, 4)
        print(json.dumps({"prompt": "\n".join(lines) + "\n" + ask, "tail": answer}))


def tune(count, folders):
    lookup(count, folders, seed=7, of_tests=False)


def main(kind, *rest):
    if kind == "train":
        train(rest)
    elif kind in ("copies", "facts"):
        {"copies": copies, "facts": facts}[kind](int(rest[0]), int(rest[1]), rest[2:])
    else:
        {"test": test, "recall": recall, "lookup": lookup, "tune": tune}[kind](int(rest[0]), rest[1:])


main(*sys.argv[1:])
