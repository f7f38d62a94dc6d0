#!/usr/bin/env python3
"""Judges the model with Hugging Face transformers: accuracy per skill, greedy, and how often MTP's guess holds.

usage: evaluate.py MODEL_DIR --corpus CORPUS.jsonl.xz [--count N] [--out prompts.jsonl] [--device cpu|cuda]
       evaluate.py --prompts-only --corpus CORPUS.jsonl.xz [--count N] --out prompts.jsonl

Prompts are held-out ones, drawn from a seed that training does not use. --out records every prompt, the right
answer, the reply and how many of its tokens MTP guessed, one JSON object a line; --prompts-only asks nobody for
replies.
"""
import argparse
import json
import random
import time
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, Qwen3_5ForCausalLM

import data
import model
import tasks

NEW_TOKENS = 160


def cases(corpus, count, seed):
    rng = random.Random(seed)
    for skill in tasks.CHECKED:
        for thinking in (False, True):
            found = 0
            while found < count:
                s = tasks.draw(rng, skill, corpus.window, corpus.packages, thinking)
                if tasks.held_out(s) and tasks.claimed(s):
                    found += 1
                    yield s
    for distance in (100, 300, 600, 900):
        for _ in range(count // 2):
            while not tasks.held_out(s := tasks.recall(rng, False, corpus.window, distance)):
                pass
            yield dict(s, group=f"recall, {distance} tokens of filler")


def generate(net, tokenizer, samples, device):
    """Greedy replies, as ids; prompts of like length go together."""
    prompts = [tokenizer.encode(tasks.render_prompt(s)) for s in samples]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    replies = [None] * len(prompts)
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for at in range(0, len(order), 64):
        part = order[at:at + 64]
        size = max(len(prompts[i]) for i in part)
        pad = torch.tensor([[0] * (size - len(prompts[i])) + prompts[i] for i in part], device=device)
        mask = torch.tensor([[0] * (size - len(prompts[i])) + [1] * len(prompts[i]) for i in part], device=device)
        out = net.generate(input_ids=pad, attention_mask=mask, do_sample=False, max_new_tokens=NEW_TOKENS,
                           eos_token_id=stop, pad_token_id=stop, temperature=None, top_k=None, top_p=None)
        for i, row in zip(part, out[:, size:].tolist()):
            replies[i] = row[:row.index(stop) + 1] if stop in row else row
    return prompts, replies


def acceptance(weights, prompts, replies, device):
    """Of the tokens of the replies, the share that MTP guessed one step early."""
    net = model.Tiny().to(device).eval()
    net.load_state_dict({k: v.float() for k, v in weights.items()})
    held = [0] * len(prompts)
    for i, (prompt, reply) in enumerate(zip(prompts, replies)):
        if len(reply) < 3:
            held[i] = (0, 0)
            continue
        ids = torch.tensor([prompt + reply], device=device)
        with torch.no_grad():
            hidden = net.hidden(ids[:, :-2])
            guess = net.logits(net.draft(hidden, ids[:, 1:-1])).argmax(-1)[0, len(prompt) - 1:]
        good = (guess == ids[0, len(prompt) + 1:]).sum().item()
        held[i] = (good, len(reply) - 1)
    return held


def record(s):
    return dict(group=group(s), skill=s["skill"], prompt=tasks.render_prompt(s), answer=tasks.render_answer(s),
                messages=s["messages"], tools=s["tools"], thinking=s["thinking"])


def group(s):
    return s.get("group") or s["skill"] + (", thinking" if s["thinking"] is not None else "")


def write(path, records):
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in records))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    parser.add_argument("--prompts-only", action="store_true")
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    began = time.time()
    corpus = data.Corpus(args.corpus)
    if args.prompts_only:
        write(args.out, (record(s) for s in cases(corpus, args.count, args.seed)))
        return
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    net = Qwen3_5ForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device).eval()
    samples = list(cases(corpus, args.count, args.seed))
    prompts, replies = generate(net, tokenizer, samples, args.device)
    held = acceptance(load_file(Path(args.model) / "model.safetensors"), prompts, replies, args.device)
    table, lines = {}, []
    for s, prompt, reply, (good, tried) in zip(samples, prompts, replies, held):
        text = tokenizer.decode(reply, skip_special_tokens=True)
        entry = table.setdefault(group(s), [0, 0, 0, 0, 0])
        right = tasks.right(s, text)
        for i, value in enumerate((right, 1, good, tried, len(prompt))):
            entry[i] += value
        lines.append(dict(record(s), right=right, reply=text, prompt_ids=prompt, reply_ids=reply, mtp_good=good,
                          mtp_tried=tried))
    for name, (right, count, good, tried, tokens) in table.items():
        print(f"{name:34} {100 * right / count:5.1f} % of {count}, MTP {100 * good / max(1, tried):5.1f} % of {tried}, "
              f"{tokens / count:.0f} tokens of prompt")
    good, tried = (sum(e[i] for e in table.values()) for i in (2, 3))
    print(f"MTP acceptance in all: {100 * good / max(1, tried):.1f} %; {time.time() - began:.0f} s")
    if args.out:
        write(args.out, lines)


if __name__ == "__main__":
    main()
