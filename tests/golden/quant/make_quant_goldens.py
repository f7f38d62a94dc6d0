#!/usr/bin/env python3
"""Makes small quantised layers and models with the public packages of each format, and what they mean in fp32.

usage: make_quant_goldens.py OLD [OUTDIR]     (default: beside this file)

OLD is a folder with compressed-tensors 0.12.2 (requirements.txt). Codes, zeros and scales are packed by the packages;
values are what the packages themselves turn them back into, with the stored scales widened to fp32 first, so that
each value is rounded once. README.md in this folder describes the files. Seeded and single-threaded: a second run
writes the same bytes.
"""
import importlib
import json
import subprocess
import sys
import sysconfig
import types
from pathlib import Path

import torch
from compressed_tensors.compressors.naive_quantized.base import NaiveQuantizationCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

HERE = Path(__file__).resolve().parent


def bare(*names):
    """Packages whose __init__ is not run, so that one module of each can be imported."""
    for name in names:
        module = types.ModuleType(name)
        module.__path__ = [str(Path(sysconfig.get_paths()["purelib"], *name.split(".")))]
        sys.modules[name] = module


bare("auto_gptq", "auto_gptq.nn_modules", "auto_gptq.nn_modules.qlinear", "awq", "awq.modules", "awq.modules.linear",
     "awq.utils")
QuantLinear = importlib.import_module("auto_gptq.nn_modules.qlinear.qlinear_cuda").QuantLinear
WQLinear_GEMM = importlib.import_module("awq.modules.linear.gemm").WQLinear_GEMM
dequantize_gemm = importlib.import_module("awq.utils.packing_utils").dequantize_gemm


def linear(weight):
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    return layer


# --- one layer: (weight, scale [N][G], zero [N][G] as codes, ...) -> (tensors, value fp32) ---


def gptq(weight, scale, zero, bits=4, group=32, order=None, v2=False):
    """order: the group of each column, or None."""
    layer = QuantLinear(bits, group, weight.shape[1], weight.shape[0], False, weight_dtype=scale.dtype)
    g_idx = None if order is None else order.to(torch.int32)
    layer.pack(linear(weight), scale.float(), zero.float(), g_idx)
    tensors = dict(qweight=layer.qweight, qzeros=layer.qzeros.clone(), scales=layer.scales.to(scale.dtype),
                   g_idx=layer.g_idx.to(torch.int32))
    layer.scales = tensors["scales"].float()
    value = layer(torch.eye(weight.shape[1])).t()
    if v2:  # as GPTQModel's convert_gptq_v1_to_v2_format_module() does it
        tensors["qzeros"] += 0b00010001000100010001000100010001 if bits == 4 else 0b00000001000000010000000100000001
    return tensors, value


def awq(weight, scale, zero, group=32):
    layer = WQLinear_GEMM.from_linear(linear(weight), 4, group, scales=scale.t().contiguous(),
                                      zeros=zero.t().contiguous().to(scale.dtype))
    tensors = dict(qweight=layer.qweight, qzeros=layer.qzeros, scales=layer.scales)
    value = dequantize_gemm(layer.qweight, layer.qzeros, layer.scales.float(), 4, group)
    return tensors, value.t()


def compressed(weight, scale, zero=None, bits=4, packed=True, floats=False, strategy="group", group=32):
    args = QuantizationArgs(num_bits=bits, type="float" if floats else "int", symmetric=zero is None,
                            strategy=strategy, group_size=group if strategy == "group" else None)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = PackedQuantizationCompressor if packed else NaiveQuantizationCompressor
    state = {"weight": weight, "weight_scale": scale}
    if zero is not None:
        state["weight_zero_point"] = (zero - (1 << (bits - 1))).to(torch.int8)
    tensors = compressor.compress(state, scheme)
    wide = dict(tensors, weight_scale=scale.float())
    return tensors, compressor.decompress(wide, scheme)["weight"]


def fp8_blocks(weight, scale, block=128):
    rows, columns = weight.shape
    spread = scale.float().repeat_interleave(block, 0)[:rows].repeat_interleave(block, 1)[:, :columns]
    codes = (weight / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
    return (dict(weight=codes, weight_scale_inv=scale),
            _dequantize_fp8_weight(codes, scale, [block, block], torch.float32))


REORDERED = """
import sys, torch
from safetensors.torch import load_file, save_file
from compressed_tensors.compressors.quantized_compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationConfig
i = load_file(sys.argv[1])
args = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=32, actorder="group")
c = PackedQuantizationCompressor()
t = c.compress_weight(i["weight"], i["scale"], args, g_idx=i["g_idx"])
t.update(weight_scale=i["scale"], weight_g_idx=i["g_idx"])
t["value"] = c.decompress_weight(dict(t, weight_scale=i["scale"].float()), args)
save_file(t, sys.argv[2])
"""


def reordered(old, folder, weight, scale, g_idx):
    """compressed-tensors with actorder group: by its last version that wrote weight_g_idx."""
    source, result = folder / "in.safetensors", folder / "out.safetensors"
    save_file({"weight": weight, "scale": scale, "g_idx": g_idx.to(torch.int32)}, source)
    subprocess.run([sys.executable, "-c", REORDERED, source, result], check=True, env={"PYTHONPATH": str(old)})
    tensors = load_file(result)
    source.unlink()
    result.unlink()
    return tensors, tensors.pop("value")


# --- layers ---

GPTQ = dict(quant_method="gptq", bits=4, group_size=32, sym=False, desc_act=False, checkpoint_format="gptq")
AWQ = dict(quant_method="awq", bits=4, group_size=32, zero_point=True, version="gemm",
           modules_to_not_convert=["visual"])


def ct_config(fmt, weights, **more):
    weights = dict(dict(num_bits=4, type="int", symmetric=True, strategy="group", group_size=32, dynamic=False,
                        actorder=None), **weights)
    return dict(quant_method="compressed-tensors", format=fmt, quantization_status="compressed", ignore=["lm_head"],
                config_groups=dict(group_0=dict(targets=["Linear"], weights=weights, input_activations=None)), **more)


def random_layer(seed, rows=32, columns=128, group=32, bits=4, dtype=torch.float16, zeros=True, g_idx=None):
    """A weight that the scales and zeros of these groups cover."""
    g = torch.Generator().manual_seed(seed)
    groups = -(-columns // group)
    weight = torch.randn(rows, columns, generator=g) * torch.rand(rows, 1, generator=g)
    columns_of = g_idx if g_idx is not None else torch.arange(columns) // group
    scale, zero = torch.empty(rows, groups), torch.empty(rows, groups)
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    for i in range(groups):
        part = weight[:, columns_of == i]
        low, high = part.amin(1).clamp(max=0), part.amax(1).clamp(min=0)
        if zeros:  # 1 and not 0: the first version of GPTQ cannot store 0
            scale[:, i] = (high - low) / top
            zero[:, i] = (-low / scale[:, i]).round().clamp(1, top)
        else:
            scale[:, i] = part.abs().amax(1) / (middle - 1)
            zero[:, i] = middle
    scale = scale.to(dtype)
    weight = weight.clamp(((0 - zero) * scale.float())[:, columns_of], ((top - zero) * scale.float())[:, columns_of])
    return weight, scale, zero


def shuffled(seed, columns, group):
    g = torch.Generator().manual_seed(seed)
    return (torch.arange(columns) // group)[torch.randperm(columns, generator=g)]


def make_layers(old, folder):
    cases = {}

    def add(name, config, made):
        cases[name] = (config, *made)

    gptq_case = dict(v1_g32=({}, {}), sym_g64=(dict(group=64), dict(zeros=False)), row=(dict(group=128), {}),
                     v2_g32=(dict(v2=True), {}), int8_g64=(dict(group=64, bits=8), {}),
                     int8_bf16=(dict(group=32, bits=8, v2=True), dict(dtype=torch.bfloat16)))
    for i, (name, (how, layer)) in enumerate(gptq_case.items()):
        group, bits = how.get("group", 32), how.get("bits", 4)
        config = dict(GPTQ, bits=bits, group_size=-1 if name == "row" else group, sym=not layer.get("zeros", True),
                      checkpoint_format="gptq_v2" if how.get("v2") else "gptq")
        add("gptq_" + name, config, gptq(*random_layer(i, group=group, bits=bits, **layer), **how))
    for i, (name, bits, zeros) in enumerate((("order", 4, True), ("int8_order", 8, False))):
        g_idx = shuffled(20 + i, 128, 32)
        add("gptq_" + name, dict(GPTQ, bits=bits, desc_act=True, sym=not zeros),
            gptq(*random_layer(30 + i, bits=bits, zeros=zeros, g_idx=g_idx), bits=bits, order=g_idx))
    for i, group in enumerate((32, 128)):
        add("awq_g%d" % group, dict(AWQ, group_size=group), awq(*random_layer(40 + i, group=group), group=group))

    bf16, row = torch.bfloat16, dict(strategy="channel", group_size=None)
    packed = dict(g32=(4, 32, bf16, False), g64_zeros=(4, 64, bf16, True), row_zeros=(4, 128, torch.float16, True),
                  g128=(4, 128, torch.float32, False), int8_g32_zeros=(8, 32, bf16, True),
                  int8_row=(8, 128, bf16, False))
    for i, (name, (bits, group, dtype, zeros)) in enumerate(packed.items()):
        weight, scale, zero = random_layer(50 + i, rows=36, group=group, bits=bits, dtype=dtype, zeros=zeros)
        by_row = "row" in name
        config = dict(num_bits=bits, symmetric=not zeros, **(row if by_row else dict(group_size=group)))
        add("packed_" + name, ct_config("pack-quantized", config),
            compressed(weight, scale, zero if zeros else None, bits, group=group,
                       strategy="channel" if by_row else "group"))
    g_idx = shuffled(22, 128, 32)
    weight, scale, _ = random_layer(60, dtype=bf16, zeros=False, g_idx=g_idx)
    add("packed_order", ct_config("pack-quantized", dict(actorder="group")),
        reordered(old, folder, weight, scale, g_idx))

    for i, (name, group, zeros) in enumerate((("row", 128, False), ("g32_zeros", 32, True))):
        weight, scale, zero = random_layer(70 + i, group=group, bits=8, dtype=bf16, zeros=zeros)
        how = dict(num_bits=8, symmetric=not zeros, **(row if name == "row" else dict(group_size=group)))
        add("int8_" + name, ct_config("int-quantized", how),
            compressed(weight, scale, zero if zeros else None, 8, packed=False, group=group,
                       strategy="channel" if name == "row" else "group"))

    weight, _, _ = random_layer(80)
    for name, scale, strategy in (("row", (weight.abs().amax(1, True) / 448).to(bf16), "channel"),
                                  ("tensor", (weight.abs().max() / 448).reshape(1), "tensor")):
        add("fp8_" + name, ct_config("float-quantized", dict(num_bits=8, type="float", strategy=strategy,
                                                             group_size=None)),
            compressed(weight, scale, None, 8, packed=False, floats=True, strategy=strategy))
    weight, _, _ = random_layer(81, rows=136, columns=144, group=144)
    scale = torch.stack([torch.stack([b.abs().max() / 448 for b in a.split(128, 1)]) for a in weight.split(128, 0)])
    add("fp8_blocks", dict(quant_method="fp8", activation_scheme="dynamic", fmt="e4m3", weight_block_size=[128, 128]),
        fp8_blocks(weight, scale.to(bf16)))

    tensors, index = {}, {}
    for name, (config, parts, value) in cases.items():
        index[name] = dict(rows=value.shape[0], columns=value.shape[1], quantization_config=config)
        tensors[name + ".value"] = value.float().contiguous()
        tensors.update({"%s.%s" % (name, key): part.contiguous() for key, part in parts.items()})
    save_file(tensors, folder / "layers.safetensors")
    (folder / "layers.json").write_text(json.dumps(index, indent=1) + "\n")


# --- models: one set of weights that every format can hold exactly ---

H, I, V, D = 64, 128, 64, 32
CONFIG = dict(
    architectures=["Qwen3_5ForCausalLM"], model_type="qwen3_5_text", dtype="bfloat16", attention_bias=False,
    attn_output_gate=True, hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=4096, num_hidden_layers=2,
    layer_types=["linear_attention", "full_attention"], linear_conv_kernel_dim=4, mtp_num_hidden_layers=1,
    mtp_use_dedicated_embeddings=False, eos_token_id=V - 1, vocab_size=V, hidden_size=H, intermediate_size=I,
    num_attention_heads=2, num_key_value_heads=2, head_dim=D, linear_num_key_heads=2, linear_num_value_heads=2,
    linear_key_head_dim=D, linear_value_head_dim=D, tie_word_embeddings=False,
    rope_parameters=dict(rope_type="default", rope_theta=10000000, partial_rotary_factor=0.25))
MLP = {"mlp.gate_proj": (I, H), "mlp.up_proj": (I, H), "mlp.down_proj": (H, I)}
ATTENTION = {"self_attn.q_proj": (4 * D, H), "self_attn.k_proj": (2 * D, H), "self_attn.v_proj": (2 * D, H),
             "self_attn.o_proj": (H, 2 * D)}
GDN = {"linear_attn.in_proj_qkv": (6 * D, H), "linear_attn.in_proj_z": (2 * D, H), "linear_attn.in_proj_b": (2, H),
       "linear_attn.in_proj_a": (2, H), "linear_attn.out_proj": (H, 2 * D)}


def make_dense():
    """-> (matrices: name -> (codes -8..7, scale [N][K/32] of powers of two), the rest: name -> tensor)."""
    g = torch.Generator().manual_seed(90)
    normal = lambda *shape: (torch.randn(*shape, generator=g) * 0.2).to(torch.bfloat16)
    matrices, rest = {}, {}
    layers = {"model.layers.0.": (MLP, GDN), "model.layers.1.": (MLP, ATTENTION), "mtp.layers.0.": (MLP, ATTENTION)}
    shapes = {p + name: shape for p, groups in layers.items() for part in groups for name, shape in part.items()}
    for name, (n, k) in dict(shapes, lm_head=(V, H), **{"mtp.fc": (H, 2 * H)}).items():
        codes = torch.randint(-8, 8, (n, k), generator=g)
        matrices[name] = codes, torch.pow(2.0, -5 - torch.randint(0, 3, (n, k // 32), generator=g).float())
    for prefix in layers:
        for norm in ("input_layernorm", "post_attention_layernorm"):
            rest[prefix + norm + ".weight"] = normal(H)
        if prefix != "model.layers.0.":
            rest.update({prefix + "self_attn.%s_norm.weight" % x: normal(D) for x in "qk"})
    for norm in ("model.norm", "mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden"):
        rest[norm + ".weight"] = normal(H)
    gdn = "model.layers.0.linear_attn."
    rest.update({"model.embed_tokens.weight": normal(V, H) * 5, gdn + "conv1d.weight": normal(6 * D, 1, 4),
                 gdn + "dt_bias": normal(2), gdn + "A_log": torch.rand(2, generator=g),
                 gdn + "norm.weight": 1 + normal(D)})
    return matrices, rest


def expand(scale, columns):
    return scale.repeat_interleave(columns // scale.shape[1], 1)


def of_model(fmt, codes, scale):
    """The parts of one matrix in this format; what they mean is asserted to be the dense weight."""
    weight = codes * expand(scale, codes.shape[1])
    half, middle = scale.half(), torch.full_like(scale, 8)
    if fmt == "gptq":  # whole groups change places, so that the grouping itself stays that of the weights
        turned = torch.arange(scale.shape[1]).flip(0)
        parts, value = gptq(weight, half[:, turned], middle, order=turned.repeat_interleave(32))
    elif fmt == "awq":
        parts, value = awq(weight, half, middle)
    elif fmt == "packed":
        parts, value = compressed(weight, scale.bfloat16(), middle)
    elif fmt == "int8":
        parts, value = compressed(weight, scale.amin(1, True).bfloat16(), None, 8, packed=False, strategy="channel")
    else:
        blocks = torch.full((-(-codes.shape[0] // 128), -(-codes.shape[1] // 128)), 2.0 ** -6, dtype=torch.bfloat16)
        parts, value = fp8_blocks(weight, blocks)
    assert torch.equal(value, weight)
    return parts


def make_models(folder):
    matrices, rest = make_dense()
    no_ba = lambda name: not name.endswith(("in_proj_a", "in_proj_b"))
    chosen = {
        "dense": (None, lambda name: False),
        "gptq": (dict(GPTQ, sym=True, desc_act=True, dynamic={"lm_head": {}, "-:.*attn.*": {}, "-:.*mtp.*": {}}),
                 lambda name: ".mlp." in name),
        "awq": (dict(AWQ, modules_to_not_convert=["mtp", "in_proj_a", "in_proj_b", "lm_head"]),
                lambda name: no_ba(name) and name != "lm_head"),
        "packed": (dict(ct_config("pack-quantized", dict(symmetric=False)), ignore=["re:.*in_proj_[ab]$"]), no_ba),
        "int8": (dict(ct_config("int-quantized", dict(num_bits=8, strategy="channel", group_size=None)), ignore=[]),
                 lambda name: True),
        "fp8": (dict(quant_method="fp8", activation_scheme="dynamic", weight_block_size=[128, 128],
                     modules_to_not_convert=["lm_head", "mtp.fc", "model.layers.0.linear_attn.in_proj_a",
                                             "model.layers.0.linear_attn.in_proj_b"]),
                lambda name: no_ba(name) and name not in ("lm_head", "mtp.fc")),
    }
    for fmt, (config, quantised) in chosen.items():
        out = folder / "models" / fmt
        out.mkdir(parents=True, exist_ok=True)
        without = "mtp." if fmt in ("gptq", "awq") else "-"  # as the tools write them that do not know of MTP
        tensors = {name: t for name, t in rest.items() if not name.startswith(without)}
        for name, (codes, scale) in matrices.items():
            if name.startswith(without):
                continue
            if quantised(name):
                tensors.update({"%s.%s" % (name, key): part for key, part in of_model(fmt, codes, scale).items()})
            else:
                tensors[name + ".weight"] = (codes * expand(scale, codes.shape[1])).to(torch.bfloat16)
        save_file({name: t.contiguous() for name, t in tensors.items()}, out / "model.safetensors",
                  metadata=dict(format="pt"))
        full = dict(CONFIG, **({"quantization_config": config} if config else {}))
        (out / "config.json").write_text(json.dumps(full, indent=1) + "\n")


def main():
    torch.set_num_threads(1)
    old, folder = Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else HERE
    folder.mkdir(parents=True, exist_ok=True)
    make_layers(old, folder)
    make_models(folder)


if __name__ == "__main__":
    main()
