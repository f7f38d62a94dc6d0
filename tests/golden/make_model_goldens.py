#!/usr/bin/env python3
"""Makes tiny Qwen3.5 checkpoints and what HF transformers computes from them.

usage: make_model_goldens.py [OUTDIR] [MODEL...]     (default: models/ beside this file, all models)

Each model becomes OUTDIR/NAME/ with an ordinary HF checkpoint and golden.safetensors; README.md beside
this file says what each tensor is. Weights are drawn once and rounded to BF16, so one checkpoint serves
the fp32 goldens (the same values, upcast) and the BF16 ones.
"""
import importlib.util
import json
import math
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig
from transformers.models.qwen3_5.modeling_qwen3_5 import (
    Qwen3_5DecoderLayer,
    Qwen3_5ForCausalLM,
    Qwen3_5RMSNorm,
)

torch.set_num_threads(1)
torch.set_grad_enabled(False)

LENGTHS = (1, 3, 63, 64, 65, 200)
MTP_LENGTHS = (3, 65)
STEP_LOGIT_LENGTHS = (3, 65)
N_GREEDY = 20
# A test allows 1e-3 on a logit and wants every argmax: no two best logits may lie nearer than this.
MARGIN = 3e-3
# The gate on BF16 is a mean KL of 1e-3: HF's own BF16 must stay well inside it.
KL_MAX = 3e-4
# And no single position of a BF16 prompt may be so ill-conditioned that it decides the mean.
KL_MAX_POSITION = 1.5e-3

# dense: lengths whose logits are kept at every position; others keep every 8th and the last.
# states: lengths whose recurrent states are kept. bf16: lengths also run in BF16.
MODELS = {
    "small": dict(
        seed=11, style="text", shards=2, dense=(1, 3, 63, 64, 65), states=(1, 3, 64, 65, 200),
        bf16=(3, 64, 65), embed_std=0.5, out_gain=0.6, lm_gain=1.0,
        cfg=dict(vocab_size=512, hidden_size=128, intermediate_size=256, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=64, linear_num_key_heads=2, linear_num_value_heads=6,
                 linear_key_head_dim=32, linear_value_head_dim=32, tie_word_embeddings=False),
        mrope=[3, 3, 2]),
    "real": dict(
        seed=12, style="nested", shards=1, dense=(1, 3, 65), states=(65,), state_layers=(0, 2),
        bf16=(3, 64, 65), embed_std=0.125, out_gain=1.0, visual=True,
        cfg=dict(vocab_size=512, hidden_size=64, intermediate_size=256, num_attention_heads=6,
                 num_key_value_heads=1, head_dim=256, linear_num_key_heads=1, linear_num_value_heads=3,
                 linear_key_head_dim=128, linear_value_head_dim=128, tie_word_embeddings=True),
        mrope=[11, 11, 10]),
    "tp8": dict(
        seed=13, style="nested", shards=1, dense=(1, 3), states=(3, 65),
        bf16=(3, 65), embed_std=0.5, out_gain=0.6, lm_gain=0.7,
        cfg=dict(vocab_size=1024, hidden_size=64, intermediate_size=256, num_attention_heads=24,
                 num_key_value_heads=4, head_dim=32, linear_num_key_heads=8, linear_num_value_heads=24,
                 linear_key_head_dim=16, linear_value_head_dim=16, tie_word_embeddings=False),
        mrope=[2, 1, 1]),
}
N_LAYERS = 4


def text_config_dict(spec):
    """text_config as the published checkpoints write it."""
    v = spec["cfg"]["vocab_size"]
    return dict(
        model_type="qwen3_5_text", dtype="bfloat16", attention_bias=False, attention_dropout=0.0,
        attn_output_gate=True, hidden_act="silu", rms_norm_eps=1e-6, max_position_embeddings=4096,
        full_attention_interval=4, num_hidden_layers=N_LAYERS,
        layer_types=["full_attention" if (i + 1) % 4 == 0 else "linear_attention" for i in range(N_LAYERS)],
        linear_conv_kernel_dim=4, mamba_ssm_dtype="float32", mlp_only_layers=[], mtp_num_hidden_layers=1,
        mtp_use_dedicated_embeddings=False, eos_token_id=v - 1, initializer_range=0.02, use_cache=True,
        rope_parameters=dict(rope_type="default", rope_theta=10000000, partial_rotary_factor=0.25,
                             mrope_section=spec["mrope"], mrope_interleaved=True),
        **spec["cfg"])


def config_json(spec):
    t = text_config_dict(spec)
    if spec["style"] == "text":
        return dict(architectures=["Qwen3_5ForCausalLM"], **t)
    v = spec["cfg"]["vocab_size"]
    c = dict(architectures=["Qwen3_5ForConditionalGeneration"], model_type="qwen3_5",
             image_token_id=v - 5, video_token_id=v - 4, vision_start_token_id=v - 7, vision_end_token_id=v - 6,
             tie_word_embeddings=t["tie_word_embeddings"], text_config=t)
    if spec.get("visual"):
        c["vision_config"] = dict(
            model_type="qwen3_5", depth=1, hidden_size=16, intermediate_size=32, num_heads=2, in_channels=3,
            patch_size=16, temporal_patch_size=2, spatial_merge_size=2, num_position_embeddings=16,
            out_hidden_size=t["hidden_size"], hidden_act="gelu_pytorch_tanh", deepstack_visual_indexes=[])
    return c


def draw_weights(spec):
    """Every tensor of the checkpoint, with prefix-free names (layers.0...., mtp...., lm_head.weight)."""
    c = spec["cfg"]
    rng = np.random.default_rng(spec["seed"])
    h, i, v, hd = c["hidden_size"], c["intermediate_size"], c["vocab_size"], c["head_dim"]
    nq, nkv = c["num_attention_heads"], c["num_key_value_heads"]
    hk, hv = c["linear_num_key_heads"], c["linear_num_value_heads"]
    dk, dv = c["linear_key_head_dim"], c["linear_value_head_dim"]
    # What a layer adds is made somewhat smaller than what it adds to, as in trained models: BF16 noise then
    # stays far below the gate, and every layer still moves the logits by hundreds of tolerances.
    out_gain = spec["out_gain"] * spec["embed_std"]
    w = {}

    def bf16(x):
        return torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).to(torch.bfloat16)

    def linear(name, n_out, n_in, gain=1.0):
        w[name] = bf16(rng.standard_normal((n_out, n_in)) * gain / math.sqrt(n_in))

    def zero_centred(name, n):
        w[name] = bf16(rng.standard_normal(n) * 0.2)

    def attention_layer(p):
        zero_centred(p + "input_layernorm.weight", h)
        linear(p + "self_attn.q_proj.weight", 2 * nq * hd, h)
        linear(p + "self_attn.k_proj.weight", nkv * hd, h)
        linear(p + "self_attn.v_proj.weight", nkv * hd, h)
        linear(p + "self_attn.o_proj.weight", h, nq * hd, out_gain)
        zero_centred(p + "self_attn.q_norm.weight", hd)
        zero_centred(p + "self_attn.k_norm.weight", hd)

    def gdn_layer(p):
        zero_centred(p + "input_layernorm.weight", h)
        channels = 2 * hk * dk + hv * dv
        linear(p + "linear_attn.in_proj_qkv.weight", channels, h)
        linear(p + "linear_attn.in_proj_z.weight", hv * dv, h)
        linear(p + "linear_attn.in_proj_b.weight", hv, h)
        linear(p + "linear_attn.in_proj_a.weight", hv, h)
        w[p + "linear_attn.conv1d.weight"] = bf16(rng.standard_normal((channels, 1, 4)) * 0.5)
        w[p + "linear_attn.dt_bias"] = bf16(rng.uniform(-4, 2, hv))
        # F32 in the published checkpoints, and here not representable in BF16 either.
        w[p + "linear_attn.A_log"] = torch.from_numpy(np.log(rng.uniform(0.01, 16, hv)).astype(np.float32))
        w[p + "linear_attn.norm.weight"] = torch.from_numpy(
            (1 + 0.2 * rng.standard_normal(dv)).astype(np.float32))
        linear(p + "linear_attn.out_proj.weight", h, hv * dv, out_gain)

    def mlp(p):
        zero_centred(p + "post_attention_layernorm.weight", h)
        linear(p + "mlp.gate_proj.weight", i, h)
        linear(p + "mlp.up_proj.weight", i, h)
        linear(p + "mlp.down_proj.weight", h, i, out_gain)

    tied = c["tie_word_embeddings"]
    w["embed_tokens.weight"] = bf16(rng.standard_normal((v, h)) * spec["embed_std"])
    for n in range(N_LAYERS):
        p = f"layers.{n}."
        (attention_layer if (n + 1) % 4 == 0 else gdn_layer)(p)
        mlp(p)
    zero_centred("norm.weight", h)
    if tied:
        # Half of the final gains are negative: with equal signs every token would predict itself.
        sign = torch.from_numpy(rng.choice([-1.0, 1.0], h).astype(np.float32))
        w["norm.weight"] = ((1 + w["norm.weight"].float()) * sign - 1).to(torch.bfloat16)
    else:
        linear("lm_head.weight", v, h, spec["lm_gain"])
    linear("mtp.fc.weight", h, 2 * h)
    for n in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        zero_centred(f"mtp.{n}.weight", h)
    attention_layer("mtp.layers.0.")
    mlp("mtp.layers.0.")
    return w


def write_checkpoint(spec, w, out):
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("*.safetensors*"):
        old.unlink()
    prefix = "model." if spec["style"] == "text" else "model.language_model."
    named = {(k if k.startswith(("mtp.", "lm_head.")) else prefix + k): t for k, t in w.items()}
    if spec.get("visual"):
        # A loader of the text model has to step over the tensors of the vision tower.
        rng = np.random.default_rng(spec["seed"] + 1000)
        named["model.visual.pos_embed.weight"] = torch.from_numpy(
            rng.standard_normal((16, 16)).astype(np.float32)).to(torch.bfloat16)
        named["model.visual.merger.norm.bias"] = torch.zeros(16, dtype=torch.bfloat16)
    total = sum(t.numel() * t.element_size() for t in named.values())
    if spec["shards"] == 1:
        save_file(named, out / "model.safetensors", metadata={"format": "pt"})
    else:
        n = spec["shards"]
        parts, used = [dict() for _ in range(n)], 0
        for k in sorted(named):
            parts[min(n - 1, used * n // total)][k] = named[k]
            used += named[k].numel() * named[k].element_size()
        files = [f"model-{i + 1:05d}-of-{n:05d}.safetensors" for i in range(n)]
        for f, part in zip(files, parts):
            save_file(part, out / f, metadata={"format": "pt"})
        where = {k: f for f, part in zip(files, parts) for k in part}
        write_json(out / "model.safetensors.index.json",
                   dict(metadata=dict(total_size=total), weight_map=dict(sorted(where.items()))))
    write_json(out / "config.json", config_json(spec))
    v = spec["cfg"]["vocab_size"]
    write_json(out / "generation_config.json",
               dict(bos_token_id=None, do_sample=True, eos_token_id=[v - 2, v - 1], pad_token_id=v - 1,
                    temperature=1.0, top_k=20, top_p=0.95))


def write_json(path, obj):
    path.write_text(json.dumps(obj, indent=2) + "\n")


def load_model(spec, out, dtype):
    """Loads what was written, by its written names, and lets nothing be missing or left over."""
    stored = {}
    for f in sorted(out.glob("model*.safetensors")):
        stored.update(load_file(f))
    prefix = "model." if spec["style"] == "text" else "model.language_model."
    state, mtp = {}, {}
    for k, t in stored.items():
        if k.startswith("mtp."):
            mtp[k] = t.to(dtype)
        elif k.startswith("model.visual."):
            continue
        elif k.startswith("lm_head."):
            state[k] = t.to(dtype)
        else:
            assert k.startswith(prefix), k
            state["model." + k[len(prefix):]] = t.to(dtype)
    written = json.loads((out / "config.json").read_text())
    cfg = Qwen3_5TextConfig(**written.get("text_config", written))
    cfg._attn_implementation = "eager"
    model = Qwen3_5ForCausalLM(cfg).to(dtype).eval()
    if cfg.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True)
    if cfg.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    assert model.model.layers[0].mlp.down_proj.weight.dtype == dtype
    return model, mtp


def forward(model, ids, cache=None):
    """Logits [T][V], residual stream after embedding and each layer [N+1][T][H], post-norm hidden [T][H]."""
    kept = []
    hooks = [model.model.embed_tokens.register_forward_hook(lambda m, a, o: kept.append(o[0]))]
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(
            lambda m, a, o: kept.append((o[0] if isinstance(o, tuple) else o)[0])))
    hooks.append(model.model.norm.register_forward_hook(lambda m, a, o: kept.append(o[0])))
    r = model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True)
    for hook in hooks:
        hook.remove()
    assert len(kept) == N_LAYERS + 2
    return r.logits[0].float(), torch.stack(kept[:-1]).float(), kept[-1], r.past_key_values


def greedy(model, cache, logits, n):
    ids, rows = [], []
    for _ in range(n):
        ids.append(int(logits[-1].argmax()))
        rows.append(logits[-1])
        if len(ids) < n:
            r = model(input_ids=torch.tensor([ids[-1:]]), past_key_values=cache, use_cache=True)
            logits, cache = r.logits[0].float(), r.past_key_values
    return ids, torch.stack(rows)


def mtp_forward(model, mtp, hidden, next_ids):
    """MTP head, teacher-forced: entry t is made from the post-norm hidden of t and the id at t+1."""
    cfg = model.config
    dtype = hidden.dtype

    def norm(name, x):
        n = Qwen3_5RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps).to(dtype)
        n.weight.copy_(mtp[name])
        return n(x)

    layer = Qwen3_5DecoderLayer(cfg, layer_idx=3).to(dtype).eval()
    p = "mtp.layers.0."
    layer.load_state_dict({k[len(p):]: t for k, t in mtp.items() if k.startswith(p)}, strict=True)
    t = hidden.shape[0]
    e = norm("mtp.pre_fc_norm_embedding.weight", model.model.embed_tokens(torch.tensor(next_ids)))
    u = norm("mtp.pre_fc_norm_hidden.weight", hidden)
    y = torch.nn.functional.linear(torch.cat([e, u], dim=-1), mtp["mtp.fc.weight"])[None]
    positions = torch.arange(1, t + 1).view(1, 1, -1).expand(3, 1, -1)
    mask = torch.full((t, t), torch.finfo(dtype).min, dtype=dtype).triu(1)[None, None]
    y = layer(y, position_embeddings=model.model.rotary_emb(y, positions), attention_mask=mask)
    y = norm("mtp.norm.weight", y[0] if isinstance(y, tuple) else y)[0]
    return y.float(), model.lm_head(y).float()


def margin(logits):
    top = logits.topk(2, dim=-1).values
    return float((top[:, 0] - top[:, 1]).min())


def bf16_kl(bf16_model, ids, logits):
    """KL(fp32 || BF16) at each position, and the BF16 log-probs."""
    lp32 = logits.double().log_softmax(-1)
    lp16 = forward(bf16_model, ids)[0].double().log_softmax(-1)
    return (lp32.exp() * (lp32 - lp16)).sum(-1), lp16


def pick_prompt(model, bf16_model, mtp, spec, length):
    """The first seeded prompt with no near tie in its own logits, its greedy tokens or its MTP logits."""
    v = spec["cfg"]["vocab_size"]
    for seed in range(4000):
        ids = np.random.default_rng([spec["seed"], length, seed]).integers(0, v - 8, length).tolist()
        logits, hidden, normed, cache = forward(model, ids)
        if margin(logits) < MARGIN:
            continue
        states = {i: (cache.layers[i].recurrent_states[0][0].clone(), cache.layers[i].conv_states[0][0].clone())
                  for i in range(N_LAYERS) if model.config.layer_types[i] == "linear_attention"}
        out, rows = greedy(model, cache, logits, N_GREEDY)
        if margin(rows) < MARGIN or set(out) & {v - 2, v - 1}:
            continue
        if length in spec["bf16"] and float(bf16_kl(bf16_model, ids, logits)[0].max()) > KL_MAX_POSITION:
            continue
        mtp_out = None
        if length in MTP_LENGTHS:
            mtp_ids = ids[1:] + out[:1]
            mtp_out = (mtp_ids, *mtp_forward(model, mtp, normed, mtp_ids))
            if margin(mtp_out[2]) < MARGIN:
                continue
        return ids, logits, hidden, normed, states, out, rows, mtp_out
    raise SystemExit(f"no prompt of {length} ids without a near tie")


def make(name, root):
    spec, out = MODELS[name], root / name
    write_checkpoint(spec, draw_weights(spec), out)
    model, mtp = load_model(spec, out, torch.float32)
    bf16_model, _ = load_model(spec, out, torch.bfloat16)
    g, kls, agree = {}, [], []

    def put(key, x, dtype):
        g[key] = torch.as_tensor(x).to(dtype).contiguous()

    for n in LENGTHS:
        p = f"len{n}."
        ids, logits, hidden, normed, states, out_ids, rows, mtp_out = pick_prompt(model, bf16_model, mtp, spec, n)
        i32, f32 = torch.int32, torch.float32
        put(p + "ids", ids, i32)
        put(p + "argmax", logits.argmax(-1), i32)
        pos = list(range(n)) if n in spec["dense"] else sorted(set(range(0, n, 8)) | {n - 1})
        put(p + "logits_pos", pos, i32)
        put(p + "logits", logits[pos], f32)
        put(p + "greedy", out_ids, i32)
        if n in STEP_LOGIT_LENGTHS:
            put(p + "greedy_logits", rows, f32)
        pos = sorted({0, min(1, n - 1), n // 2, max(0, n - 2), n - 1})
        put(p + "hidden_pos", pos, i32)
        put(p + "hidden", hidden[:, pos], f32)
        put(p + "final_norm", normed[pos], f32)
        for i, (state, conv) in states.items():
            assert conv.shape[-1] == 4
            put(f"{p}conv.layer{i}", conv[:, 1:], f32)
            if n in spec["states"] and i in spec.get("state_layers", (i,)):
                put(f"{p}state.layer{i}", state, f32)
        if mtp_out:
            put(p + "mtp_ids", mtp_out[0], i32)
            put(p + "mtp_hidden", mtp_out[1], f32)
            put(p + "mtp_logits", mtp_out[2], f32)
            put(p + "mtp_argmax", mtp_out[2].argmax(-1), i32)
        if n in spec["bf16"]:
            kl, lp16 = bf16_kl(bf16_model, ids, logits)
            put(p + "bf16_logprobs", lp16, f32)
            kls.append(kl)
            agree.append(logits.argmax(-1) == lp16.argmax(-1))
            print(f"{name} len{n}: KL(fp32 || bf16) mean {kls[-1].mean():.2e} max {kls[-1].max():.2e}, "
                  f"top-1 agreement {agree[-1].double().mean():.3f}")
        print(f"{name} len{n}: logits std {logits.std():.2f} max {logits.abs().max():.2f}, "
              f"margin {margin(logits):.1e}, residual rms by layer "
              + " ".join(f"{x:.2f}" for x in hidden.pow(2).mean((1, 2)).sqrt().tolist()))
    print(f"{name}: mean KL {float(torch.cat(kls).mean()):.2e} top1 {float(torch.cat(agree).double().mean()):.3f}")
    kl = float(torch.cat(kls).mean())
    assert kl < KL_MAX, f"{name}: HF's own BF16 is {kl:.1e} from fp32"
    # One key only: safetensors writes several in an order that changes from run to run.
    origin = (f"make_model_goldens.py, torch {torch.__version__.split('+')[0]}, "
              f"transformers {transformers.__version__}; mean KL(fp32 || HF BF16) {kl:.2e}")
    save_file(g, out / "golden.safetensors", metadata={"origin": origin})
    for f in out.iterdir():
        f.chmod(0o644)


def main():
    for other in ("fla", "causal_conv1d", "kernels"):
        if importlib.util.find_spec(other):
            raise SystemExit(f"{other} is installed: HF would use it instead of its PyTorch formulas")
    args = sys.argv[1:]
    root = Path(args[0]) if args else Path(__file__).resolve().parent / "models"
    for name in args[1:] or MODELS:
        make(name, root)


if __name__ == "__main__":
    main()
