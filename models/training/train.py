#!/usr/bin/env python3
"""Trains the bundled model.

usage: train.py --corpus CORPUS.jsonl.xz --tokenizer DIR --work DIR [--minutes M | --steps N] [options]

Reproducible from --seed up to the GPU's rounding. --minutes chooses the number of steps from the speed that it measures
while the rate still rises, and records it: --steps with that number is the same run. --work keeps checkpoint.pt, from
which the same command goes on, log.txt, and at the end weights.safetensors (BF16; A_log and the gated norms F32).
"""
import argparse
import math
import os
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer

import data
import model

MTP_WEIGHT = 0.3
WARMUP = 100


class Muon:
    """Momentum made orthogonal by Newton-Schulz, for the matrices inside the layers; same shapes go together."""

    def __init__(self, parameters):
        self.groups = {}
        for p in parameters:
            self.groups.setdefault(tuple(p.shape), []).append(p)
        self.momentum = {shape: torch.zeros(len(ps), *shape, device=ps[0].device) for shape, ps in self.groups.items()}

    @torch.no_grad()
    def step(self, lr, beta, decay):
        for shape, ps in self.groups.items():
            grad, m = torch.stack([p.grad for p in ps]), self.momentum[shape]
            m.lerp_(grad, 1 - beta)
            update = newton_schulz(grad.lerp(m, beta)) * max(1, shape[0] / shape[1]) ** 0.5
            torch._foreach_mul_(ps, 1 - lr * decay)
            torch._foreach_add_(ps, list(update.to(ps[0].dtype).unbind()), alpha=-lr)


def newton_schulz(g):
    x = g.bfloat16()
    flip = x.shape[-2] > x.shape[-1]
    x = x.mT if flip else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for a, b, c in ((3.4445, -4.7750, 2.0315),) * 5:
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return x.mT if flip else x


def losses(net, ids, marks):
    """Mean cross entropy of the next token and of MTP's guess at the one after; ids, marks: [B, T + 2]."""
    length = ids.shape[1] - 2
    hidden = net.hidden(ids[:, :length])
    weight = marks + data.PROMPT_WEIGHT * (1 - marks)
    main = cross(net, hidden, ids[:, 1:length + 1], weight[:, 1:length + 1])
    guess = net.draft(hidden.detach(), ids[:, 1:length + 1])
    return main, cross(net, guess, ids[:, 2:length + 2], weight[:, 2:length + 2])


def cross(net, hidden, target, weight):
    logits = net.logits(hidden).flatten(0, 1)
    loss = F.cross_entropy(logits.float(), target.flatten(), reduction="none")
    return (loss * weight.flatten()).sum() / weight.sum()


def schedule(step, steps):
    if step < WARMUP:
        return (step + 1) / WARMUP
    wave = 0.5 + 0.5 * math.cos(math.pi * (step - WARMUP) / max(1, steps - WARMUP))
    return max(0.0, wave) * 0.98 + 0.02 * (1 - step / steps)


def self_check(device):
    """The fast inverse against the library's, and the chunked form against token by token."""
    torch.manual_seed(0)
    a = (torch.randn(64, 64, 64, device=device) * 0.3).tril(-1)
    eye = torch.eye(64, device=device)
    error = ((model.inverse(a) @ (a.double() + eye).float()) - eye).abs().max().item()
    print(f"self-check: inverse {error:.1e}", flush=True)
    q, k, v = (torch.randn(1, 2, 150, 128, device=device) for _ in range(3))
    q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
    g, beta = -torch.rand(1, 2, 150, device=device), torch.rand(1, 2, 150, device=device)
    out, state = model.delta_rule(q, k, v, g, beta), torch.zeros(1, 2, 128, 128, device=device)
    for t in range(150):
        state = state * g[:, :, t, None, None].exp()
        delta = (v[:, :, t] - (k[:, :, t, None] @ state)[:, :, 0]) * beta[:, :, t, None]
        state = state + k[:, :, t, :, None] * delta[:, :, None]
        want = (q[:, :, t, None] @ state)[:, :, 0]
        assert (out[:, :, t] - want).abs().max() < 0.02, "chunked form differs"


def export(net, path):
    tensors = {}
    for name, p in net.state_dict().items():
        keep = name.endswith(("A_log", "linear_attn.norm.weight"))
        tensors[name] = p.detach().to(torch.float32 if keep else torch.bfloat16).cpu().contiguous()
    save_file(tensors, path, metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpus", required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--minutes", type=float, default=0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.003)
    parser.add_argument("--compile", type=int, default=1)
    parser.add_argument("--save-every", type=int, default=2000)
    args = parser.parse_args()
    work, began = Path(args.work), time.time()
    work.mkdir(parents=True, exist_ok=True)
    saved = torch.load(work / "checkpoint.pt", map_location="cpu") if (work / "checkpoint.pt").exists() else None
    log = open(work / "log.txt", "a", buffering=1)

    def say(text):
        print(text, flush=True)
        log.write(text + "\n")

    corpus = data.Corpus(args.corpus)
    path = os.path.join(args.tokenizer, "tokenizer.json")
    ids = data.corpus_ids(Tokenizer.from_file(path), corpus)
    say(f"corpus: {len(ids)} tokens, {time.time() - began:.0f} s")
    start = saved["step"] if saved else 0
    batches = data.Batches(path, corpus, ids, args.seed, args.rows, args.processes, start)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    self_check(device)
    net = model.Tiny()
    net.initialise(args.seed)
    net.to(device)
    matrices = [p for n, p in net.named_parameters()
                if p.dim() == 2 and "embed" not in n and not n.endswith(("in_proj_a.weight", "in_proj_b.weight"))]
    others = [p for p in net.parameters() if all(p is not m for m in matrices)]
    muon, adam = Muon(matrices), torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.98), weight_decay=0,
                                                   fused=device == "cuda")
    steps = args.steps
    if saved:
        net.load_state_dict(saved["net"])
        muon.momentum = {k: v.to(device) for k, v in saved["muon"].items()}
        adam.load_state_dict(saved["adam"])
        steps = saved["steps"]
    if args.compile:
        for layer in list(net.model.layers) + list(net.mtp.layers):
            layer.compile(fullgraph=True)
        globals()["cross"] = torch.compile(cross)
    say(f"{sum(p.numel() for p in net.parameters())} parameters, {device}, set up in {time.time() - began:.0f} s")
    total, mark, waited = torch.zeros(2, device=device), time.time(), 0.0
    step = start
    while not steps or step < steps:
        before = time.time()
        rows = torch.from_numpy(batches.get().astype("int32")).to(device)
        waited += time.time() - before
        tokens, marks = (rows & 0x7FFF).long(), (rows >> 15).float()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            main_loss, mtp_loss = losses(net, tokens, marks)
        (main_loss + MTP_WEIGHT * mtp_loss).backward()
        rate = schedule(step, steps or 10 ** 9)
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        muon.step(args.lr * rate, 0.95, 0.02)
        for group in adam.param_groups:
            group["lr"] = args.adam_lr * rate
        adam.step()
        net.zero_grad(set_to_none=True)
        total += torch.stack([main_loss.detach(), mtp_loss.detach()])
        step += 1
        if step == 40 and device == "cuda":
            torch.cuda.synchronize()
            timed = time.time()
        if step == WARMUP - 5 and not steps:
            torch.cuda.synchronize()
            each = (time.time() - timed) / (step - 40)
            steps = step + int((args.minutes * 60 - (time.time() - began)) / each)
            say(f"{each * 1000:.1f} ms per step of {args.rows * data.SEQUENCE} tokens: {steps} steps in all")
        if step % 100 == 0:
            a, b = (total / 100).tolist()
            say(f"step {step}/{steps} loss {a:.4f} mtp {b:.4f} {(time.time() - mark) * 10:.1f} ms/step, "
                f"{waited * 10:.1f} ms waiting, {time.time() - began:.0f} s")
            total.zero_()
            mark, waited = time.time(), 0.0
        if step % args.save_every == 0 or step == steps:
            state = dict(net=net.state_dict(), muon=muon.momentum, adam=adam.state_dict(), step=step, steps=steps)
            torch.save(state, work / "checkpoint.tmp")
            os.replace(work / "checkpoint.tmp", work / "checkpoint.pt")
    batches.stop()
    export(net, work / "weights.safetensors")
    say(f"done: {step} steps, {step * args.rows * data.SEQUENCE / 1e6:.0f} M tokens, {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
