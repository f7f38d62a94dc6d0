#!/usr/bin/env python3
"""Loads what `shardd quantize` wrote with Hugging Face transformers and compressed-tensors, and compares.

usage: check_quantized.py ORIGINAL QUANTIZED SEQUENCES.jsonl --bin DIR [--report REPORT.json] [--count 20]

Three questions, for the first --count sequences:
  - do the dequantised matrices lie as near to the original's as the report says?
  - does transformers, with the quantised checkpoint, choose the same tokens as shardd-worker-cpu does with float
    activations and an fp32 cache, with the same log probabilities?
  - is the KL against the original the one that --eval reported for these sequences?

Not a part of CI: needs torch, transformers and compressed-tensors (requirements.txt). DIR has shardd-worker-cpu.
Exits 1 where an answer is no.
"""
import argparse
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file
from transformers import Qwen3_5ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from greedy import TOKENS, ask_shardd, follow  # noqa: E402


def load(path):
    return Qwen3_5ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


def load_quantized(original, path):
    """The quantised model. from_pretrained of transformers 5.23 with compressed-tensors 0.20 expects zero points that
    are not packed and refuses those that compressed-tensors itself packs; with zero points, the matrices are put
    together by compressed-tensors' own decompressor and set into the original."""
    with open(path + "/config.json", encoding="utf-8") as f:
        config = json.load(f)["quantization_config"]
    groups = [g["weights"] for g in config["config_groups"].values()]
    if all(g["symmetric"] for g in groups):
        return load(path)
    net, parts = load(original), {}
    for name, tensor in load_file(path + "/model.safetensors").items():
        parts.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = tensor
    for name, state in parts.items():
        if "weight_packed" in state and not name.startswith("mtp."):
            columns = int(state["weight_shape"][1])
            bits = state["weight_packed"].shape[1] * 32 // columns
            scheme = QuantizationScheme(targets=[name], weights=QuantizationArgs(
                num_bits=bits, group_size=groups[0]["group_size"], strategy="group", symmetric=False))
            state["weight_scale"] = state["weight_scale"].float()  # else values are rounded to BF16
            state["weight_shape"] = torch.Size(state["weight_shape"].tolist())
            weight = PackedQuantizationCompressor.decompress(state, scheme)["weight"].float()
            net.get_submodule(name).weight = torch.nn.Parameter(weight)
    print("(zero points: matrices by compressed-tensors' decompressor)")
    return net.eval()


def sequences(path, count):
    with open(path, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f][:count]
    return [(r.get("ids") or r["prompt_ids"], r.get("reply_ids", [])) for r in rows]


def matrix_errors(original, quantized, report):
    """The largest difference between the report's error of a matrix and the one that transformers' values have."""
    worst = 0.0
    for m in report["matrices"]:
        if m["name"].startswith("mtp."):
            continue  # transformers does not load them
        a, b = (net.get_submodule(m["name"]).weight.double() for net in (original, quantized))
        worst = max(worst, abs(float((a - b).norm() / a.norm()) - m["error"]))
    return worst


def mean_kl(original, quantized, all_ids):
    total = tokens = 0
    for ids in all_ids:
        p, q = (net(torch.tensor([ids])).logits[0].double().log_softmax(-1) for net in (original, quantized))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(ids)
    return total / tokens


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original")
    parser.add_argument("quantized")
    parser.add_argument("sequences")
    parser.add_argument("--bin", required=True)
    parser.add_argument("--report")
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    original, quantized, ok = load(args.original), load_quantized(args.original, args.quantized), True
    rows = sequences(args.sequences, args.count)
    worst, other = 0.0, 0
    for prompt, _ in rows:
        theirs, ours = follow(quantized, prompt), ask_shardd(args.bin, args.quantized, prompt)
        other += [i for i, _ in theirs] != [i for i, _ in ours]
        worst = max([worst] + [abs(a[1] - b[1]) for a, b in zip(theirs, ours) if a[0] == b[0]])
    print("%d prompts, %d tokens each: %d with another token, log probabilities differ by at most %.2g"
          % (len(rows), TOKENS, other, worst))
    ok &= other == 0 and worst < 1e-3
    if args.report:
        with open(args.report, encoding="utf-8") as f:
            report = json.load(f)
        difference = matrix_errors(original, quantized, report)
        print("errors of %d matrices: as reported, within %.2g" % (len(report["matrices"]), difference))
        ok &= difference < 1e-5
        if report.get("evaluation_sequences") == len(rows):
            kl = mean_kl(original, quantized, [prompt + reply for prompt, reply in rows])
            print("KL %.6f, reported %.6f" % (kl, report["kl"]))
            ok &= abs(kl - report["kl"]) < 1e-4 + 0.002 * report["kl"]
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
