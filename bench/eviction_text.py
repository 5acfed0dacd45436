#!/usr/bin/env python3
"""Text whose ends depend on what stood far before them: for bench_eviction.

  eviction_text.py train N SEED > train.txt    N documents, one a line
  eviction_text.py test N SEED > test.jsonl    {"prompt": ..., "tail": ...}, one a line

A document describes people, each by a name and eight words that nobody else has, and then recalls
some of them. A test's
prompt describes more of them and ends in the middle of one recall; its tail is the rest of it."""
import json
import random
import sys

SYLLABLES = ["ka", "zor", "mi", "len", "tu", "ba", "rix", "so", "ve", "dan", "po", "gri"]
WORDS = ["".join((a, b, c)) for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]


def person(rng, left):
    return left.pop(), [left.pop() for _ in range(8)]


def described(name, words):
    return f"{name} has {' '.join(words)} ."


def document(rng, described_people, recalls):
    left = rng.sample(WORDS, 9 * described_people)
    people = [person(rng, left) for _ in range(described_people)]
    parts = [described(*p) for p in people]
    recalled = [rng.choice(people) for _ in range(recalls)]
    return parts, recalled


def main():
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(f"{kind} {seed}")
    for _ in range(count):
        if kind == "train":
            parts, recalled = document(rng, rng.randint(10, 50), rng.randint(50, 70))
            print(" ".join(parts + [described(*p) for p in recalled]))
        else:
            parts, recalled = document(rng, 90, 3)
            name, words = recalled[-1]
            parts += [described(*p) for p in recalled[:-1]]
            print(json.dumps({"prompt": " ".join(parts + [name, "has", words[0]]),
                              "tail": " " + " ".join(words[1:]) + " ."}))


main()
