#!/usr/bin/env python3
"""Quantises a whole model with llm-compressor in several schemes, and compares shardd with it.

usage: check_llmcompressor.py MODEL CALIBRATION.jsonl SEQUENCES.jsonl FOLDER --bin DIR [--only NAME ...] [--count 20]

FOLDER/NAME is what llm-compressor writes. compressed-tensors dequantises its matrices; transformers multiplies with
them in fp32, activations unquantised, as shardd does whatever the scheme says of activations. Does shardd-worker-cpu,
with float activations and an fp32 cache, choose the same tokens, with the same log probabilities?

Not a part of CI: needs llm-compressor (requirements-llmcompressor.txt). DIR has shardd-worker-cpu. Exits 1 if not.
"""
import argparse
import json
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import compare  # noqa: E402
import torch  # noqa: E402
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor  # noqa: E402
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme  # noqa: E402
from datasets import Dataset  # noqa: E402
from llmcompressor import oneshot  # noqa: E402
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

IGNORED = ["lm_head", "re:.*in_proj_[ab]$", "re:.*mtp.*", "re:.*visual.*"]


def grouped(**weights):
    args = QuantizationArgs(**dict(dict(num_bits=4, type="int", strategy="group", group_size=32), **weights))
    return dict(config_groups=dict(group_0=QuantizationScheme(targets=["Linear"], weights=args)))


def preset(name):
    return dict(scheme=name, targets="Linear")


CASES = {
    "int4_g32": (GPTQModifier, grouped()),
    "int4_g32_static": (GPTQModifier, grouped(actorder="static")),
    "int4_g128_zeros": (GPTQModifier, grouped(group_size=128, symmetric=False)),
    "W4A16": (QuantizationModifier, preset("W4A16")),
    "W4A16_ASYM": (QuantizationModifier, preset("W4A16_ASYM")),
    "W8A16": (GPTQModifier, preset("W8A16")),
    "W8A8": (GPTQModifier, preset("W8A8")),
    "FP8": (QuantizationModifier, preset("FP8")),
    "FP8_DYNAMIC": (QuantizationModifier, preset("FP8_DYNAMIC")),
    "FP8_BLOCK": (QuantizationModifier, preset("FP8_BLOCK")),
}


def quantise(args, name, target):
    modifier, how = CASES[name]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    rows = compare.calibration(args.calibration)
    data = Dataset.from_dict(dict(input_ids=rows, attention_mask=[[1] * len(r) for r in rows]))
    oneshot(model=model, dataset=data, recipe=[modifier(ignore=IGNORED, **how)], num_calibration_samples=len(rows),
            max_seq_length=512)
    model.save_pretrained(target, save_compressed=True)


def matrices_of(target, tensors):
    with open(target + "/config.json", encoding="utf-8") as f:
        group = json.load(f)["quantization_config"]["config_groups"]["group_0"]
    weights = QuantizationArgs(**dict(group["weights"], scale_dtype=None))
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    parts, matrices = {}, {}
    for name, tensor in tensors.items():
        parts.setdefault(name.rpartition(".")[0], {})[name.rpartition(".")[2]] = tensor
    for name, state in parts.items():
        if "weight_scale" in state:
            state["weight_scale"] = state["weight_scale"].float()  # else values are rounded to BF16
            if "weight_shape" in state:
                state["weight_shape"] = torch.Size(state["weight_shape"].tolist())
            packed = "weight_packed" in state
            compressor = PackedQuantizationCompressor if packed else NaiveQuantizationCompressor
            matrices[name] = compressor.decompress(state, scheme)["weight"].float()
    return matrices


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "sequences", "folder"):
        parser.add_argument(name)
    parser.add_argument("--bin", required=True)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    rows, ok = compare.rows_of(args.sequences), True
    rows = rows[::max(1, len(rows) // args.count)][:args.count]
    for name in args.only:
        target = os.path.join(args.folder, name)
        if not os.path.exists(target):
            quantise(args, name, target)
        tensors = load_file(target + "/model.safetensors")
        with torch.no_grad():
            matrices = matrices_of(target, tensors)
            net = compare.plain_model(args.model, tensors, matrices)
        ok &= compare.compare(name, net, len(matrices), args.bin, target, rows)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
