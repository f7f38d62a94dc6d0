#!/usr/bin/env python3
"""Quantises a whole model with GPTQModel, calibration and all, and compares shardd with it.

usage: check_gptqmodel.py MODEL CALIBRATION.jsonl SEQUENCES.jsonl TARGET --bin DIR [--config JSON] [--count 20]

TARGET is the folder that GPTQModel writes; where it is there, it is read. GPTQModel then reads it and dequantises its
matrices; transformers multiplies with them in fp32. Does shardd-worker-cpu, with float activations and an fp32 cache,
choose the same tokens, with the same log probabilities?

Not a part of CI: needs GPTQModel (requirements-gptqmodel.txt). DIR has shardd-worker-cpu. Exits 1 where it does not.
"""
import argparse
import json
import os
import re
import subprocess
import sys

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with 1, it does not start
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear  # noqa: E402
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import Qwen3_5ForCausalLM  # noqa: E402

TOKENS = 24
LINE = re.compile(r"^\s*\d+\s+id\s+(\d+)\s+logprob\s+(-?[\d.]+)$", re.M)


def rows_of(path):
    with open(path, encoding="utf-8") as f:
        return [r.get("prompt_ids") or r["ids"] for r in map(json.loads, f)]


def quantise(args):
    model = GPTQModel.load(args.model, QuantizeConfig(**json.loads(args.config)), device="cpu")
    rows = [r for r in rows_of(args.calibration) if len(r) >= 40][:32]
    model.quantize([dict(input_ids=torch.tensor([r]), attention_mask=torch.ones(1, len(r), dtype=torch.long))
                    for r in rows], batch_size=1)
    model.save(args.target)


def dequantise(layer, scales):
    """The fp32 matrix of one of GPTQModel's layers, whose own scales are rounded to BF16 by now."""
    layer.scales = scales.float()
    if isinstance(layer, TorchLinear):
        return TorchLinear.dequantize_weight(layer.eval()).t()
    return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.bits, layer.group_size).t()


def text_name(name):
    return name.replace("model.language_model.", "model.", 1)


def plain_model(args):
    """The original with GPTQModel's matrices, dequantised with scales in fp32, and all else as it is in the target."""
    found = 0
    net = Qwen3_5ForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    state, tensors = net.state_dict(), load_file(args.target + "/model.safetensors")
    for name, tensor in tensors.items():
        if text_name(name) in state:
            state[text_name(name)].copy_(tensor)
    with open(args.target + "/config.json", encoding="utf-8") as f:
        awq = json.load(f)["quantization_config"]["quant_method"] == "awq"
    backend = BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH
    for name, layer in GPTQModel.load(args.target, backend=backend, device="cpu").model.named_modules():
        if isinstance(layer, (TorchLinear, AwqTorchLinear)):
            state[text_name(name) + ".weight"].copy_(dequantise(layer, tensors[name + ".scales"]))
            found += 1
    return net, found


def follow(net, prompt):
    ids, found = list(prompt), []
    for _ in range(TOKENS):
        logprobs = net(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        ids.append(int(logprobs.argmax()))
        found.append((ids[-1], float(logprobs.max())))
    return found


def ask_shardd(folder, model, prompt):
    command = [folder + "/shardd-worker-cpu", "--model", model, "--load-format", "safetensors",
               "--activations", "float", "--kv-cache-dtype", "fp32", "--max-model-len", "2048",
               "--max-tokens", str(TOKENS), "--generate-ids", ",".join(map(str, prompt))]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [(int(i), float(p)) for i, p in LINE.findall(out)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "sequences", "target"):
        parser.add_argument(name)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--config", default="{}", help="of GPTQModel's QuantizeConfig")
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    if not os.path.exists(args.target):
        quantise(args)
    with torch.no_grad():
        net, found = plain_model(args)
        rows, worst, other = rows_of(args.sequences), 0.0, 0
        rows = rows[::max(1, len(rows) // args.count)][:args.count]
        for prompt in rows:
            theirs, ours = follow(net, prompt), ask_shardd(args.bin, args.target, prompt)
            same = next((i for i in range(TOKENS) if theirs[i][0] != ours[i][0]), TOKENS)
            other += same < TOKENS
            worst = max([worst] + [abs(theirs[i][1] - ours[i][1]) for i in range(same)])
    print("%d matrices, %d prompts, %d tokens each: %d with another token, log probabilities differ by at most %.2g"
          % (found, len(rows), TOKENS, other, worst))
    return 0 if found and other == 0 and worst < 1e-3 else 1


if __name__ == "__main__":
    sys.exit(main())
