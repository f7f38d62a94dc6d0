#!/usr/bin/python3
"""What an INT8 KV cache and an fp16 recurrent state lose over 32,768 tokens in a single pass: KL per position, its
tail, positions that are lost, by depth.

usage: tail_table.py [--tokens 32768] [--threads N] [--model DIR]

The text is the held-out prompts of tests/eval and their replies, one after another. models/shardd-tiny says that it
sees 4,096 tokens; what is measured is a folder with its files and a config.json that allows as many as there are: its
weights are what they are, and its position embeddings have no length. The binary, bench-tp-tails, is SHARDD_BIN's.
docs/quality.md holds the output.
"""
import argparse
import json
import os
import subprocess
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
BIN = os.environ.get("SHARDD_BIN", os.path.join(ROOT, "build/release/bin"))
MODEL = os.path.join(ROOT, "models/shardd-tiny")
PROMPTS = os.path.join(HERE, "prompts.jsonl")


def text():
    """Token ids of all prompts and replies."""
    ids = []
    with open(PROMPTS, encoding="utf-8") as f:
        for record in map(json.loads, f):
            ids += record["prompt_ids"] + record["reply_ids"]
    return ids


def longer(model, tokens, folder):
    """A copy of the model, by links, that may see so many tokens."""
    os.mkdir(folder)
    for name in os.listdir(model):
        if name != "config.json":
            os.symlink(os.path.join(os.path.abspath(model), name), os.path.join(folder, name))
    with open(os.path.join(model, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    config["max_position_embeddings"] = max(config["max_position_embeddings"], tokens + 64)
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)


def measure(model=MODEL, tokens=32768, threads=os.cpu_count()):
    """The lines of the table."""
    ids = text()[:tokens]
    with tempfile.TemporaryDirectory(prefix="shardd-tails-") as folder:
        path = os.path.join(folder, "ids")
        with open(path, "w", encoding="utf-8") as f:
            f.write(" ".join(map(str, ids)))
        longer(model, len(ids), os.path.join(folder, "model"))
        with subprocess.Popen([os.path.join(BIN, "bench-tp-tails"), os.path.join(folder, "model"), path, str(len(ids)),
                               str(threads)], stdout=subprocess.PIPE, text=True) as program:
            yield from (line.rstrip("\n") for line in program.stdout)
        if program.returncode != 0:
            raise RuntimeError("bench-tp-tails: exit status %d" % program.returncode)


def main():
    parser = argparse.ArgumentParser(description="Makes a table of docs/quality.md, see the top of this file.")
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--tokens", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    for line in measure(args.model, args.tokens, args.threads):
        print(line, flush=True)


if __name__ == "__main__":
    main()
