#!/usr/bin/env python3
"""Makes what HF transformers computes from two models whose checkpoints are too large to be committed.

usage: make_seeded_goldens.py [OUTDIR] [MODEL...]     (default: seeded/ beside this file, both models)

Every weight is a pure function of the model's seed, the tensor's name and the element's index, in integers
only, so that a C test makes the same checkpoint (tests/lib/seeded_checkpoint.h). OUTDIR/NAME/ gets
config.json, tensors.txt (what the C side has to know of each tensor, and checksums of its bytes) and
golden.safetensors; README.md beside this file describes them. The rest is make_model_goldens.py's work.
"""
import math
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import make_model_goldens as golden

# As in make_model_goldens.MODELS. keep: per golden, the prompt lengths it is kept for; what is not named is
# kept wherever it was made.
MODELS = {
    "small256": dict(
        seed=21, style="nested", shards=1, dense=(1, 3, 65), states=(3, 64, 65, 200), bf16=(3, 64, 65),
        embed_std=0.5, out_gain=0.6, lm_gain=1.0,
        cfg=dict(vocab_size=512, hidden_size=256, intermediate_size=512, num_attention_heads=6,
                 num_key_value_heads=2, head_dim=64, linear_num_key_heads=2, linear_num_value_heads=6,
                 linear_key_head_dim=32, linear_value_head_dim=32, tie_word_embeddings=False),
        mrope=[3, 3, 2],
        keep={"hidden": (1, 3, 64, 65, 200), "conv": (3, 64, 65, 200)}),
    "tp8_512": dict(
        seed=22, style="text", shards=1, dense=(1, 3), states=(3, 65), bf16=(3, 65),
        embed_std=0.5, out_gain=0.6, lm_gain=0.7,
        cfg=dict(vocab_size=1024, hidden_size=512, intermediate_size=1024, num_attention_heads=24,
                 num_key_value_heads=4, head_dim=32, linear_num_key_heads=8, linear_num_value_heads=24,
                 linear_key_head_dim=16, linear_value_head_dim=16, tie_word_embeddings=False),
        mrope=[2, 1, 1],
        keep={"hidden": (3, 64, 65, 200), "conv": (3, 65, 200)}),
}

MASK = (1 << 64) - 1
STEP = 0x9E3779B97F4A7C15
BYTES_MAX = 1_200_000


def mix(z):
    """splitmix64's finisher, on an array of uint64 (which wraps)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def sequence(start, n):
    """start + STEP, start + 2 STEP, ... modulo 2^64."""
    return np.uint64(start & MASK) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(STEP)


def name_hash(name):
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def numerators(seed, name, n, base, spread):
    """base plus uniform integers in [-spread, spread]."""
    start = int(mix(np.array([name_hash(name) ^ seed], dtype=np.uint64))[0])
    high = mix(sequence(start, n)) >> np.uint64(32)
    return base + ((high * np.uint64(2 * spread + 1)) >> np.uint64(32)).astype(np.int64) - spread


def checksum(array):
    """Sum of mix(element + (i + 1) * STEP) over the elements as stored: depends on every bit and its place."""
    words = array.view({2: np.uint16, 4: np.uint32}[array.dtype.itemsize]).astype(np.uint64)
    return int(np.add.reduce(mix(sequence(0, words.size) + words), dtype=np.uint64))


def scale_for(std):
    """(spread, exponent): uniform in [-spread, spread] * 2^-exponent has about this deviation."""
    exponent = math.floor(math.log2(127 / (std * math.sqrt(3))))
    return round(std * math.sqrt(3) * 2 ** exponent), exponent


def rule_of(spec, name, shape):
    """(base, spread, exponent): the tensor's values are (base + uniform integer) * 2^-exponent.

    Numerators need at most 8 bits, so that BF16 holds the values; those of A_log and of the GDN norm need 11,
    which F16 holds and BF16 does not. No exponent is near F16's smallest, 2^-24.
    """
    out_gain = spec["out_gain"] * spec["embed_std"]
    if name.endswith("A_log"):
        return -256, 960, 8
    if name.endswith("linear_attn.norm.weight"):
        return 1024, 355, 10
    if name.endswith("dt_bias"):
        return -32, 96, 5
    if name.endswith("conv1d.weight"):
        return 0, *scale_for(0.5)
    if len(shape) == 1:
        return 0, *scale_for(0.2)
    if name == "embed_tokens.weight":
        return 0, *scale_for(spec["embed_std"])
    if name == "lm_head.weight":
        return 0, *scale_for(spec["lm_gain"] / math.sqrt(shape[1]))
    writes_residual = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
    return 0, *scale_for((out_gain if writes_residual else 1) / math.sqrt(shape[1]))


def stored_name(spec, name):
    prefix = "model." if spec["style"] == "text" else "model.language_model."
    return name if name.startswith(("mtp.", "lm_head.")) else prefix + name


def make_weights(spec, drawn, lines):
    """Tensors with the names, shapes and dtypes of drawn; lines gets those of tensors.txt."""
    weights = {}
    for name in sorted(drawn, key=lambda n: stored_name(spec, n)):
        shape, dtype = tuple(drawn[name].shape), drawn[name].dtype
        base, spread, exponent = rule_of(spec, name, shape)
        stored = stored_name(spec, name)
        n = numerators(spec["seed"], stored, math.prod(shape), base, spread)
        values = (n * 2.0 ** -exponent).astype(np.float32).reshape(shape)
        t = torch.from_numpy(values)
        assert torch.equal(t.to(torch.float16).float(), t), f"{name} is not exact in F16"
        assert torch.equal(t.to(torch.bfloat16).float(), t) == (dtype == torch.bfloat16), name
        weights[name] = t.to(dtype)
        halves = t.to(torch.bfloat16).view(torch.int16).numpy()
        sums = (checksum(values.ravel()), checksum(values.astype(np.float16).ravel()),
                checksum((halves if dtype == torch.bfloat16 else values).ravel()))
        lines.append(f"{stored} {'BF16' if dtype == torch.bfloat16 else 'F32'} {base} {spread} {exponent} "
                     f"{'x'.join(map(str, shape))} " + " ".join(f"{s:016x}" for s in sums))
    return weights


def thin(spec, g):
    """Leaves out what the size limit has no room for; adds mtp_pos and bf16_pos."""
    kept = {}
    for key, t in g.items():
        length, what = key.split(".")[:2]
        n = int(length[3:])
        if n not in spec["keep"].get(what, (n,)):
            continue
        positions = g[f"{length}.logits_pos"].long()
        if what in ("mtp_hidden", "mtp_logits", "bf16_logprobs"):
            kept[f"{length}.{what.split('_')[0]}_pos"] = positions.to(torch.int32)
            t = t[positions].contiguous()
        kept[key] = t
    return kept


def make(name, root):
    spec, out, lines = MODELS[name], root / name, []
    draw = golden.draw_weights
    golden.MODELS[name] = spec
    golden.draw_weights = lambda s: make_weights(s, draw(s), lines)
    with tempfile.TemporaryDirectory() as tmp:
        golden.make(name, Path(tmp))
        golden.draw_weights = draw
        made = Path(tmp) / name
        out.mkdir(parents=True, exist_ok=True)
        for f in ("config.json", "generation_config.json"):
            shutil.copyfile(made / f, out / f)
        with safe_open(made / "golden.safetensors", "pt") as f:
            origin = f.metadata()["origin"]
        g = load_file(made / "golden.safetensors")
    (out / "tensors.txt").write_text(f"seed {spec['seed']}\n" + "\n".join(lines) + "\n")
    save_file(thin(spec, g), out / "golden.safetensors",
              metadata={"origin": origin.replace("make_model_goldens.py", "make_seeded_goldens.py")})
    size = (out / "golden.safetensors").stat().st_size
    print(f"{name}: {size} bytes of goldens")
    assert size <= BYTES_MAX
    for f in out.iterdir():
        f.chmod(0o644)


def main():
    args = sys.argv[1:]
    root = Path(args[0]) if args else Path(__file__).resolve().parent / "seeded"
    for name in args[1:] or MODELS:
        make(name, root)


if __name__ == "__main__":
    main()
