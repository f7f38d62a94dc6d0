#!/usr/bin/env python3
"""Makes calibration.jsonl: prompts with their answers, as token ids, to quantise models/shardd-tiny with.

usage: make_calibration.py CORPUS.jsonl.xz

Drawn by models/training/tasks.py from what training may see; the evaluation's prompts (tests/eval) are of the
held-out twentieth, so none of them is here. CORPUS is what models/training/corpus.py makes.
"""
import json
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(HERE)))
sys.path.insert(0, os.path.join(ROOT, "models/training"))

import data  # noqa: E402
import tasks  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

COUNT, TOKENS_MAX, SEED = 128, 1000, 4004


def main():
    corpus, rng = data.Corpus(sys.argv[1]), random.Random(SEED)
    tokenizer = Tokenizer.from_file(os.path.join(ROOT, "models/shardd-tiny/tokenizer.json"))
    with open(os.path.join(HERE, "calibration.jsonl"), "w", encoding="utf-8") as out:
        found = 0
        while found < COUNT:
            s = tasks.training_sample(rng, corpus.window, corpus.packages)
            ids = tokenizer.encode(tasks.render_prompt(s) + tasks.render_answer(s)).ids
            if len(ids) <= TOKENS_MAX and not tasks.held_out(s):
                out.write(json.dumps({"skill": s["skill"], "ids": ids}, separators=(",", ":")) + "\n")
                found += 1


if __name__ == "__main__":
    main()
