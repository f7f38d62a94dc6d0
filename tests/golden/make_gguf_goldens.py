#!/usr/bin/env python3
"""Writes small GGUF files with the public gguf package, and what its own dequantisation makes of them.

usage: make_gguf_goldens.py [OUTDIR]

OUTDIR is gguf/ beside this file when left out. README.md beside this file describes every output.
"""
import json
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from safetensors.torch import save_file

HERE = Path(__file__).resolve().parent
SEED = 8
K_HEADS, V_HEADS, HEAD = 2, 6, 32
CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": 128, "hidden_size": 64,
    "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 32, "full_attention_interval": 4, "linear_num_key_heads": K_HEADS,
    "linear_num_value_heads": V_HEADS, "linear_key_head_dim": HEAD, "linear_value_head_dim": HEAD,
    "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
    "mtp_num_hidden_layers": 1, "tie_word_embeddings": False, "attention_bias": False, "attn_output_gate": True,
    "hidden_act": "silu", "eos_token_id": [126, 127],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25},
}
NAMES = {
    "input_layernorm.weight": "attn_norm.weight", "post_attention_layernorm.weight": "post_attention_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight", "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight", "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight", "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight", "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight", "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight", "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight", "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.dt_bias": "ssm_dt.bias", "linear_attn.A_log": "ssm_a", "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
OTHERS = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight", "mtp.fc.weight": "blk.4.nextn.eh_proj.weight",
    "mtp.pre_fc_norm_embedding.weight": "blk.4.nextn.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "blk.4.nextn.hnorm.weight",
    "mtp.norm.weight": "blk.4.nextn.shared_head_norm.weight",
}


# --- the model, as Hugging Face has it ---

def make_model(rng):
    c = CONFIG
    h, inter, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv, v = c["num_attention_heads"] * d, c["num_key_value_heads"] * d, V_HEADS * HEAD
    qkv = 2 * K_HEADS * HEAD + v
    t = {}

    def normal(name, *shape, spread=0.1, mean=0.0, f32=False):
        x = torch.from_numpy(rng.normal(mean, spread, shape).astype(np.float32))
        t[name] = x if f32 else x.to(torch.bfloat16)

    def layer(p, attention):
        for n in ("input_layernorm", "post_attention_layernorm"):
            normal(f"{p}{n}.weight", h, spread=0.2)
        normal(f"{p}mlp.gate_proj.weight", inter, h)
        normal(f"{p}mlp.up_proj.weight", inter, h)
        normal(f"{p}mlp.down_proj.weight", h, inter)
        if attention:
            a = f"{p}self_attn."
            normal(f"{a}q_proj.weight", 2 * q, h)
            normal(f"{a}k_proj.weight", kv, h)
            normal(f"{a}v_proj.weight", kv, h)
            normal(f"{a}o_proj.weight", h, q)
            normal(f"{a}q_norm.weight", d, spread=0.2)
            normal(f"{a}k_norm.weight", d, spread=0.2)
            return
        a = f"{p}linear_attn."
        normal(f"{a}in_proj_qkv.weight", qkv, h)
        normal(f"{a}in_proj_z.weight", v, h)
        normal(f"{a}in_proj_b.weight", V_HEADS, h)
        normal(f"{a}in_proj_a.weight", V_HEADS, h)
        normal(f"{a}conv1d.weight", qkv, 1, 4, spread=0.5)
        normal(f"{a}dt_bias", V_HEADS, spread=2)
        t[f"{a}A_log"] = torch.from_numpy(np.log(rng.uniform(0.01, 16, V_HEADS)).astype(np.float32))
        normal(f"{a}norm.weight", HEAD, mean=1, spread=0.2, f32=True)
        normal(f"{a}out_proj.weight", h, v)

    normal("model.embed_tokens.weight", c["vocab_size"], h, spread=1)
    for i in range(c["num_hidden_layers"]):
        layer(f"model.layers.{i}.", (i + 1) % 4 == 0)
    normal("model.norm.weight", h, spread=0.2)
    normal("lm_head.weight", c["vocab_size"], h)
    normal("mtp.fc.weight", h, 2 * h)
    for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        normal(f"mtp.{n}.weight", h, spread=0.2)
    layer("mtp.layers.0.", True)
    return t


# --- what the converter does ---

def tile(x, axis, head):
    """Head k * r + i of Hugging Face goes to place i * Hk + k."""
    shape = x.shape
    r = V_HEADS // K_HEADS
    x = x.reshape(*shape[:axis], K_HEADS, r, head, *shape[axis + 1:])
    return np.ascontiguousarray(np.swapaxes(x, axis, axis + 1)).reshape(shape)


def convert(name, x):
    qk = 2 * K_HEADS * HEAD
    if name.endswith("A_log"):
        return tile(-np.exp(x), 0, 1)
    if name.endswith("dt_bias") or ".in_proj_a." in name or ".in_proj_b." in name:
        return tile(x, 0, 1)
    if name.endswith("conv1d.weight"):
        x = x.squeeze(1)
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        return np.concatenate([x[:qk], tile(x[qk:], 0, HEAD)])
    if name.endswith("in_proj_z.weight"):
        return tile(x, 0, HEAD)
    if name.endswith("out_proj.weight"):
        return tile(x, 1, HEAD)
    if "norm" in name and not name.endswith("linear_attn.norm.weight"):
        return x + np.float32(1)
    return x


def gguf_name(name):
    if name in OTHERS:
        return OTHERS[name]
    prefix = "mtp.layers.0." if name.startswith("mtp.") else ".".join(name.split(".")[:3]) + "."
    block = 4 if name.startswith("mtp.") else int(name.split(".")[2])
    return f"blk.{block}.{NAMES[name[len(prefix):]]}"


def is_matrix(x, name):
    return x.ndim == 2 and "conv1d" not in name


def add_metadata(w):
    c = CONFIG
    w.add_block_count(c["num_hidden_layers"] + 1)
    w.add_uint32("qwen35.nextn_predict_layers", 1)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_head_count_kv(c["num_key_value_heads"])
    w.add_key_length(c["head_dim"])
    w.add_value_length(c["head_dim"])
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_rope_freq_base(c["rope_parameters"]["rope_theta"])
    w.add_rope_dimension_count(8)
    w.add_array("qwen35.rope.dimension_sections", [2, 1, 1, 0])
    w.add_uint32("qwen35.full_attention_interval", 4)
    w.add_ssm_conv_kernel(4)
    w.add_ssm_state_size(HEAD)
    w.add_uint32("qwen35.ssm.group_count", K_HEADS)
    w.add_ssm_time_step_rank(V_HEADS)
    w.add_ssm_inner_size(V_HEADS * HEAD)
    w.add_array("tokenizer.ggml.tokens", [f"t{i}" for i in range(c["vocab_size"])])
    w.add_eos_token_id(126)
    w.add_uint32("tokenizer.ggml.eot_token_id", 127)


def write_model(path, model, type_of, split_max_tensors=0):
    """type_of(name, index) is the type of a matrix. Returns name -> its values as the package reads them back."""
    w = gguf.GGUFWriter(str(path), "qwen35", split_max_tensors=split_max_tensors)
    add_metadata(w)
    expected = {}
    for i, (name, tensor) in enumerate(model.items()):
        original = tensor.float().numpy()
        x = convert(name, original)
        kind = type_of(name, i) if is_matrix(x, name) else T.F32
        if kind == T.F32:
            w.add_tensor(gguf_name(name), x)
            continue
        data = gguf.quants.quantize(x, kind)
        w.add_tensor(gguf_name(name), data, raw_dtype=kind)
        # Heads are moved whole, so a row's groups are the same before and after.
        expected[name] = gguf.quants.dequantize(gguf.quants.quantize(original, kind), kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return expected


def fnv(x):
    h = 0xCBF29CE484222325
    for b in np.ascontiguousarray(x, dtype="<f4").tobytes():
        h = ((h ^ b) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{h:016x}"


# --- blocks of every type ---

ROWS, COLUMNS = 6, 768


def random_blocks(rng, kind):
    """Rows of valid blocks: any byte is a code or a packed scale; what is F16 is a number of ordinary size."""
    elements, size = gguf.constants.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (ROWS, COLUMNS // elements, size), dtype=np.uint8)
    halves = {T.Q4_K: (0, 2), T.Q5_K: (0, 2), T.Q6_K: (208,)}[kind]
    for at in halves:
        d = (rng.uniform(0.25, 2, blocks.shape[:2]) * 1e-3).astype("<f2")
        d *= np.where(rng.integers(0, 8, d.shape) == 0, -1, 1).astype("<f2")
        blocks[:, :, at:at + 2] = d[..., None].view(np.uint8)
    return blocks.reshape(ROWS, -1)


def write_matrices(out, rng):
    w = gguf.GGUFWriter(str(out / "matrices.gguf"), "qwen35")
    expected = {}
    for kind in (T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q4_K, T.Q5_K, T.Q6_K):
        if kind in (T.Q4_K, T.Q5_K, T.Q6_K):
            data = random_blocks(rng, kind)
        else:
            x = rng.normal(0, 0.05, (ROWS, COLUMNS)).astype(np.float32)
            data = gguf.quants.quantize(x * np.exp(rng.normal(0, 1, (ROWS, COLUMNS))).astype(np.float32), kind)
        w.add_tensor(kind.name, data, raw_dtype=kind)
        expected[kind.name] = torch.from_numpy(gguf.quants.dequantize(data, kind).astype(np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    save_file(expected, out / "matrices.safetensors")


# --- a tokenizer ---

def write_tokenizer(out):
    """The tokenizer of tokenizer/ as the converter would put it into metadata."""
    j = json.loads((HERE / "tokenizer/tokenizer.json").read_text())
    tokens = {i: (t, gguf.TokenType.NORMAL) for t, i in j["model"]["vocab"].items()}
    for a in j["added_tokens"]:
        kind = gguf.TokenType.CONTROL if a["special"] else gguf.TokenType.USER_DEFINED
        tokens[a["id"]] = (a["content"], kind)
    n = (max(tokens) + 64) // 64 * 64
    for i in range(n):
        tokens.setdefault(i, (f"[PAD{i}]", gguf.TokenType.UNUSED))
    merges = [m if isinstance(m, str) else " ".join(m) for m in j["model"]["merges"]]
    ids = {t: i for i, (t, _) in tokens.items()}
    w = gguf.GGUFWriter(str(out / "tokenizer.gguf"), "qwen35")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen35")
    w.add_token_list([tokens[i][0] for i in range(n)])
    w.add_token_types([tokens[i][1] for i in range(n)])
    w.add_token_merges(merges)
    w.add_eos_token_id(ids["<|im_end|>"])
    w.add_pad_token_id(ids["<|endoftext|>"])
    w.add_add_bos_token(False)
    w.add_chat_template((HERE / "../../models/chat_template.jinja").read_text())
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def main():
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "gguf"
    rng = np.random.default_rng(SEED)
    (out / "hf").mkdir(parents=True, exist_ok=True)
    write_matrices(out, rng)
    model = make_model(rng)
    save_file(model, out / "hf/model.safetensors")
    (out / "hf/config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    mixed = (T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.BF16, T.F16)
    write_model(out / "f32.gguf", model, lambda name, i: T.F32, split_max_tensors=40)
    hashes = {"q8_0": write_model(out / "q8_0.gguf", model, lambda name, i: T.Q8_0),
              "q4_0": write_model(out / "q4_0.gguf", model, lambda name, i: T.Q4_0),
              "mixed": write_model(out / "mixed.gguf", model, lambda name, i: mixed[i % len(mixed)])}
    with open(out / "hashes.txt", "w") as f:
        for file, tensors in hashes.items():
            for name, x in sorted(tensors.items()):
                f.write(f"{file} {name} {fnv(x)}\n")
    write_tokenizer(out)


if __name__ == "__main__":
    main()
