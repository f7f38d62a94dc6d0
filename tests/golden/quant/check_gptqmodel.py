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
import sys

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with 1, it does not start
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import compare  # noqa: E402
import torch  # noqa: E402
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch import TorchLinear  # noqa: E402
from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear  # noqa: E402
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm  # noqa: E402
from safetensors.torch import load_file  # noqa: E402


def quantise(args):
    model = GPTQModel.load(args.model, QuantizeConfig(**json.loads(args.config)), device="cpu")
    model.quantize([dict(input_ids=torch.tensor([r]), attention_mask=torch.ones(1, len(r), dtype=torch.long))
                    for r in compare.calibration(args.calibration)], batch_size=1)
    model.save(args.target)


def dequantise(layer, scales):
    """The fp32 matrix of one of GPTQModel's layers, whose own scales are rounded to BF16 by now."""
    layer.scales = scales.float()
    if isinstance(layer, TorchLinear):
        return TorchLinear.dequantize_weight(layer.eval()).t()
    return dequantize_gemm(layer.qweight, layer.qzeros, layer.scales, layer.bits, layer.group_size).t()


def matrices_of(target, tensors):
    with open(target + "/config.json", encoding="utf-8") as f:
        awq = json.load(f)["quantization_config"]["quant_method"] == "awq"
    model = GPTQModel.load(target, backend=BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH, device="cpu").model
    return {name: dequantise(layer, tensors[name + ".scales"]) for name, layer in model.named_modules()
            if isinstance(layer, (TorchLinear, AwqTorchLinear))}


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
    tensors = load_file(args.target + "/model.safetensors")
    with torch.no_grad():
        matrices = matrices_of(args.target, tensors)
        net = compare.plain_model(args.model, tensors, matrices)
    rows = compare.rows_of(args.sequences)
    rows = rows[::max(1, len(rows) // args.count)][:args.count]
    return 0 if compare.compare(args.config, net, len(matrices), args.bin, args.target, rows) else 1


if __name__ == "__main__":
    sys.exit(main())
