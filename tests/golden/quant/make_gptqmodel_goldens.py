#!/usr/bin/env python3
"""Makes small layers with GPTQModel, and what they mean in fp32.

usage: make_gptqmodel_goldens.py [OUTDIR]     (default: beside this file)

Its own venv: requirements-gptqmodel.txt. Codes, zeros and scales are packed by GPTQModel and taken to the first version
of the format by it; values are what it turns the stored tensors back into, with the scales widened to fp32 first: so
each is rounded once. README.md in this folder describes the files. Seeded: a second run writes the same bytes.
"""
import json
import sys
from pathlib import Path

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import FORMAT, QuantizeConfig
from gptqmodel.utils.model import convert_gptq_v1_to_v2_format_module, convert_gptq_v2_to_v1_format_module
from safetensors.torch import save_file

ROWS = 16
PARTS = ("qweight", "qzeros", "scales", "g_idx")
COLUMNS = {128: 256, 32: 96, -1: 64}  # of each group size
# version, bits, symmetric, act-order, group
CASES = ((1, 4, True, False, 128), (1, 4, True, True, 32), (1, 4, False, False, 32), (1, 4, False, True, 128),
         (1, 4, True, True, -1), (1, 4, False, False, -1), (2, 4, True, False, 32), (2, 4, True, True, 128),
         (2, 4, False, False, 128), (2, 4, False, True, 32), (2, 4, True, False, -1), (2, 4, False, True, -1),
         (1, 8, False, True, 32), (2, 8, False, False, 32))


def random_layer(seed, columns, bits, symmetric, ordered, group):
    """Weights, the group of each column, and scales and zeros [rows][groups] that cover them."""
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(ROWS, columns, generator=g) * torch.rand(ROWS, 1, generator=g)
    weight[:5, :] = weight[:5, :].abs()  # zeros of 0, which the first version of the format stores as -1
    g_idx = torch.arange(columns) // group
    if ordered:
        g_idx = g_idx[torch.randperm(columns, generator=g)]
    groups, top = columns // group, (1 << bits) - 1
    scale, zero = torch.empty(ROWS, groups), torch.empty(ROWS, groups)
    for i in range(groups):
        part = weight[:, g_idx == i]
        low, high = part.amin(1).clamp(max=0), part.amax(1)
        if symmetric:
            scale[:, i], zero[:, i] = 2 * part.abs().amax(1) / top, (top + 1) // 2
        else:
            scale[:, i] = (high - low) / top
            zero[:, i] = (-low / scale[:, i]).round()
    return weight, g_idx.to(torch.int32), scale.half(), zero


def make(seed, version, bits, symmetric, ordered, group):
    """(config, tensors as in a checkpoint, value)"""
    config = QuantizeConfig(bits=bits, group_size=group, sym=symmetric, desc_act=ordered,
                            format=FORMAT.GPTQ if version == 1 else FORMAT.GPTQ_V2)
    columns = COLUMNS[group]
    group = columns if group == -1 else group
    weight, g_idx, scale, zero = random_layer(seed, columns, bits, symmetric, ordered, group)
    linear = torch.nn.Linear(columns, ROWS, bias=False)
    linear.weight.data = weight
    layer = TorchLinear(bits, group, symmetric, ordered, columns, ROWS, format=config.format)
    layer.pack_original(linear, scale.float(), zero, g_idx)
    if version == 1:
        convert_gptq_v2_to_v1_format_module(layer, config)
    tensors = {name: getattr(layer, name).clone() for name in PARTS}
    if version == 1:
        convert_gptq_v1_to_v2_format_module(layer, bits, torch.int32)
    layer.scales = layer.scales.float()
    return config.to_dict(), tensors, layer.eval().dequantize_weight().t()


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent
    tensors, index = {}, {}
    for seed, case in enumerate(CASES):
        version, bits, symmetric, ordered, group = case
        name = "v%d_int%d_%s_%s%s" % (version, bits, "sym" if symmetric else "asym",
                                      "row" if group == -1 else "g%d" % group, "_order" if ordered else "")
        config, parts, value = make(seed, *case)
        config.pop("meta")  # where it kept its files, and other things of the run
        index[name] = dict(rows=ROWS, columns=value.shape[1], quantization_config=config)
        tensors[name + ".value"] = value.contiguous()
        tensors.update({"%s.%s" % (name, key): part.contiguous() for key, part in parts.items()})
    save_file(tensors, folder / "gptqmodel.safetensors")
    (folder / "gptqmodel.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main()
