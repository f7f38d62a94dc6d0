#!/usr/bin/env python3
"""Logits of models of odd sizes in float64, by the formulas of the architecture and nothing else.

usage: unit-tp-odd_configs --write DIR && make_odd_goldens.py DIR     (needs numpy; a few seconds)

DIR/0, DIR/1 ... are checkpoints that the test program wrote. Writes odd/goldens.json beside this file: for each model
and each prompt of the test, pairs [id, logit of the last row]: the three highest and some spread over the vocabulary.
No part of shardd is used, and none of transformers: the recurrence runs token by token, attention row by row.
"""
import json
import struct
import sys
from pathlib import Path

import numpy as np

LENGTHS = (1, 13, 29)
MASK = (1 << 64) - 1


def splitmix64(x):
    x = (x + 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & MASK
    return x ^ x >> 31


def read_safetensors(path):
    raw = path.read_bytes()
    n = struct.unpack("<Q", raw[:8])[0]
    tensors = {}
    for name, t in json.loads(raw[8:8 + n]).items():
        if name == "__metadata__":
            continue
        begin, end = t["data_offsets"]
        data = raw[8 + n + begin:8 + n + end]
        if t["dtype"] == "BF16":
            a = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            kinds = {"F32": np.float32, "F16": np.float16, "I32": np.int32, "I64": np.int64}
            a = np.frombuffer(data, kinds[t["dtype"]])
        tensors[name] = a.reshape(t["shape"])
    return tensors


class Model:
    def __init__(self, folder):
        config = json.loads((folder / "config.json").read_text())
        self.c = config.get("text_config", config)
        self.bits = 0
        if "quantization_config" in config:
            self.bits = next(iter(config["quantization_config"]["config_groups"].values()))["weights"]["num_bits"]
        self.t = {}
        for path in sorted(folder.glob("*.safetensors")):
            self.t.update(read_safetensors(path))
        self.prefix = next(n for n in self.t if n.endswith("embed_tokens.weight"))[:-len("embed_tokens.weight")]

    def plain(self, name):
        return self.t[name].astype(np.float64)

    def matrix(self, name):
        """[rows][columns], integer ones widened."""
        if name + ".weight" in self.t:
            return self.plain(name + ".weight")
        packed = self.t[name + ".weight_packed"].view(np.uint32)
        scale = self.plain(name + ".weight_scale")
        columns = int(self.t[name + ".weight_shape"][1])
        each = 32 // self.bits
        mask = np.uint32((1 << self.bits) - 1)
        codes = np.stack([packed >> np.uint32(self.bits * i) & mask for i in range(each)], -1)
        codes = codes.reshape(packed.shape[0], -1)[:, :columns].astype(np.float64) - (1 << (self.bits - 1))
        return codes * np.repeat(scale, columns // scale.shape[1], axis=1)


def norm(x, w, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * (1 + w)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rope(x, rotary, theta):
    """x [rows][heads][D], row t at position t."""
    half = rotary // 2
    angle = np.arange(len(x))[:, None] * theta ** (-2.0 * np.arange(half) / rotary)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:rotary]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, x[..., rotary:]], -1)


def attention(m, p, x):
    c, n = m.c, len(x)
    d, heads, kv_heads = c["head_dim"], c["num_attention_heads"], c["num_key_value_heads"]
    r = c["rope_parameters"]
    rotary = round(d * r["partial_rotary_factor"])
    qg = (x @ m.matrix(p + "q_proj").T).reshape(n, heads, 2 * d)
    k = (x @ m.matrix(p + "k_proj").T).reshape(n, kv_heads, d)
    v = (x @ m.matrix(p + "v_proj").T).reshape(n, kv_heads, d)
    q = rope(norm(qg[..., :d], m.plain(p + "q_norm.weight"), c["rms_norm_eps"]), rotary, r["rope_theta"])
    k = rope(norm(k, m.plain(p + "k_norm.weight"), c["rms_norm_eps"]), rotary, r["rope_theta"])
    out = np.zeros((n, heads, d))
    for t in range(n):
        for h in range(heads):
            kv = h // (heads // kv_heads)
            scores = k[:t + 1, kv] @ q[t, h] / np.sqrt(d)
            weights = np.exp(scores - scores.max())
            out[t, h] = weights / weights.sum() @ v[:t + 1, kv]
    return (out * sigmoid(qg[..., d:])).reshape(n, -1) @ m.matrix(p + "o_proj").T


def gated_delta_net(m, p, x):
    c, n = m.c, len(x)
    hk, hv = c["linear_num_key_heads"], c["linear_num_value_heads"]
    dk, dv = c["linear_key_head_dim"], c["linear_value_head_dim"]
    mixed = x @ m.matrix(p + "in_proj_qkv").T
    z = (x @ m.matrix(p + "in_proj_z").T).reshape(n, hv, dv)
    beta = sigmoid(x @ m.matrix(p + "in_proj_b").T)
    a = x @ m.matrix(p + "in_proj_a").T + m.plain(p + "dt_bias")
    g = -np.exp(m.plain(p + "A_log")) * np.logaddexp(0, a)
    taps = m.plain(p + "conv1d.weight")[:, 0]
    width = taps.shape[1]
    padded = np.concatenate([np.zeros((width - 1, mixed.shape[1])), mixed])
    mixed = silu(sum(padded[j:j + n] * taps[:, j] for j in range(width)))
    q, k = mixed[:, :hk * dk].reshape(n, hk, dk), mixed[:, hk * dk:2 * hk * dk].reshape(n, hk, dk)
    v = mixed[:, 2 * hk * dk:].reshape(n, hv, dv)
    q = q / np.sqrt((q * q).sum(-1, keepdims=True) + 1e-6) / np.sqrt(dk)
    k = k / np.sqrt((k * k).sum(-1, keepdims=True) + 1e-6)
    out = np.zeros((n, hv, dv))
    for h in range(hv):
        state, shared = np.zeros((dk, dv)), h // (hv // hk)
        for t in range(n):
            state *= np.exp(g[t, h])
            delta = (v[t, h] - k[t, shared] @ state) * beta[t, h]
            state += np.outer(k[t, shared], delta)
            out[t, h] = q[t, shared] @ state
    out = out / np.sqrt((out * out).mean(-1, keepdims=True) + c["rms_norm_eps"]) * m.plain(p + "norm.weight")
    return (out * silu(z)).reshape(n, -1) @ m.matrix(p + "out_proj").T


def logits(m, ids):
    c = m.c
    embedding = m.plain(m.prefix + "embed_tokens.weight")
    x = embedding[ids]
    for i, kind in enumerate(c["layer_types"]):
        p = f"{m.prefix}layers.{i}."
        n = norm(x, m.plain(p + "input_layernorm.weight"), c["rms_norm_eps"])
        if kind == "full_attention":
            x = x + attention(m, p + "self_attn.", n)
        else:
            x = x + gated_delta_net(m, p + "linear_attn.", n)
        n = norm(x, m.plain(p + "post_attention_layernorm.weight"), c["rms_norm_eps"])
        gate, up = n @ m.matrix(p + "mlp.gate_proj").T, n @ m.matrix(p + "mlp.up_proj").T
        x = x + (silu(gate) * up) @ m.matrix(p + "mlp.down_proj").T
    last = norm(x[-1], m.plain(m.prefix + "norm.weight"), c["rms_norm_eps"])
    head = m.matrix("lm_head") if any(t.startswith("lm_head.") for t in m.t) else embedding
    return head @ last


def main():
    folder = Path(sys.argv[1])
    models = []
    for number in range(sum(1 for f in folder.iterdir() if f.is_dir())):
        m = Model(folder / str(number))
        prompts = []
        for i, length in enumerate(LENGTHS):
            vocabulary = m.c["vocab_size"]
            row = logits(m, [splitmix64(i * 100 + k) % vocabulary for k in range(length)])
            ids = sorted({*np.argsort(row)[-3:].tolist(), *(k * (vocabulary - 1) // 7 for k in range(8))})
            prompts.append([[k, round(float(row[k]), 7)] for k in ids])
        models.append(prompts)
    lines = ",\n".join(json.dumps(p, separators=(",", ":")) for p in models)
    (Path(__file__).parent / "odd" / "goldens.json").write_text("[" + lines + "]\n")


if __name__ == "__main__":
    main()
