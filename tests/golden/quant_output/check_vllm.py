#!/usr/bin/env python3
"""Runs what `shardd quantize` wrote in vLLM's engine, on its CPU backend, and compares with shardd.

usage: check_vllm.py ORIGINAL QUANTIZED SEQUENCES.jsonl --bin DIR --report REPORT.json [--count 20]

vLLM reads config.json, finds a scheme for each of its fused modules, loads and unpacks the tensors. Then:
  - have the matrices that it holds the errors against the original that the report says, and is none missing? The MTP
    layer's are those of vLLM's draft model, which is loaded and not run: vLLM's speculation crashes on CPUs, with
    unquantised models too.
  - are the products of vLLM's own 4-bit kernel those of the dequantised weights? It has none for 8 bits on CPUs:
    there the dequantised weights are multiplied by PyTorch.
  - what shardd-worker-cpu chooses with float activations and an fp32 cache, does vLLM choose it too? Its Gated
    DeltaNet is BF16 only on CPUs, so the measure is how far vLLM with the original is from shardd with the original.

Not a part of CI: needs vLLM for CPUs (requirements-vllm.txt). DIR has shardd-worker-cpu. Exits 1 where an
answer is no.
"""
import argparse
import json
import os
import sys
from pathlib import Path

os.environ.update(VLLM_TARGET_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0",
                  VLLM_LOGGING_LEVEL="ERROR", VLLM_NO_USAGE_STATS="1", HF_HUB_OFFLINE="1")

import torch  # noqa: E402
from safetensors import safe_open  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.model_executor.kernels import linear as kernels  # noqa: E402
from vllm.model_executor.kernels.linear import MPLinearKernel  # noqa: E402
from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32  # noqa: E402
from vllm.platforms import PlatformEnum  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from greedy import TOKENS, ask_shardd  # noqa: E402
# The matrices of vLLM's fused modules, each with its number of the module's output parts.
FUSED = {"qkv_proj": (("q_proj", 1), ("k_proj", 1), ("v_proj", 1)),
         "gate_up_proj": (("gate_proj", 1), ("up_proj", 1)),
         "in_proj_qkvz": (("in_proj_qkv", 3), ("in_proj_z", 1))}


def dequantise(layer, config):
    """The fp32 matrix [outputs][inputs] of a module's parameters as vLLM has loaded them."""
    codes = unpack_quantized_values_into_int32(layer.weight_packed.data, config.weight_type, packed_dim=1).float()
    scales = layer.weight_scale.data.float()
    group = codes.shape[1] // scales.shape[1]
    zeros = float(config.weight_type.bias)
    if config.zero_points:
        zeros = unpack_quantized_values_into_int32(layer.weight_zero_point.data, config.weight_type, packed_dim=0)
        zeros = zeros.float().repeat_interleave(group, 1)
    return (codes - zeros) * scales.repeat_interleave(group, 1)


class PlainKernel(MPLinearKernel):
    """The product of dequantised weights, where vLLM has no kernel."""

    @classmethod
    def get_min_capability(cls):
        return -1

    @classmethod
    def can_implement(cls, c):
        return True, None

    def process_weights_after_loading(self, layer):
        pass

    def apply_weights(self, layer, x, bias=None):
        return torch.nn.functional.linear(x, layer.dequantised.to(x.dtype), bias)


def keep_dequantised(kernel):
    """vLLM's kernel stores the weights in another order when they are loaded: keep their values before that."""
    process = kernel.process_weights_after_loading

    def first_keep(self, layer):
        layer.dequantised = dequantise(layer, self.config)
        process(self, layer)

    kernel.process_weights_after_loading = first_keep


def start(model, draft=False):
    speculation = dict(speculative_config=dict(method="mtp", num_speculative_tokens=1)) if draft else {}
    return LLM(model, dtype="bfloat16", max_model_len=2048, max_num_seqs=4, enforce_eager=True,
               enable_prefix_caching=False, mamba_ssm_cache_dtype="float32", limit_mm_per_prompt=dict(video=0),
               **speculation)


def layer_name(name):
    """From 'layers.' on: what comes before is another in vLLM."""
    return name[name.find("layers."):] if "layers." in name else name.rpartition(".")[2]


def modules(model):
    """(name, fp32 matrix, module) of each quantised matrix that vLLM holds."""
    found = []
    for name, layer in model.named_modules():
        if not hasattr(layer, "dequantised"):
            continue
        path, _, last = name.rpartition(".")
        parts, first, i = FUSED.get(last, ((last, len(layer.output_partition_sizes)),)), 0, 0
        for part, n in parts:
            rows = sum(layer.output_partition_sizes[i:i + n])
            found.append((layer_name(path + "." + part), layer.dequantised[first:first + rows], layer))
            first, i = first + rows, i + n
    return found


def original_matrices(path, draft):
    weights = {}
    for file in sorted(os.listdir(path)):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(path, file), "pt") as f:
                weights.update((name, f.get_tensor(name)) for name in f.keys() if name.endswith(".weight"))
    of_both = ("lm_head", "embed_tokens")
    named = {layer_name(n[:-len(".weight")]): w for n, w in weights.items()
             if n.startswith("mtp.") == draft or n.split(".")[-2] in of_both}
    named.setdefault("lm_head", named["embed_tokens"])
    return named


def check_matrices(model, original, report, draft=False):
    reported = {layer_name(m["name"]): m for m in report["matrices"]
                if m["name"].startswith("mtp.") == draft or m["name"] == "lm_head"}
    weights, worst, held = original_matrices(original, draft), 0.0, modules(model)
    for name, matrix, _ in held:
        m = reported.pop(name)
        a, b = weights[name].double(), matrix.double()
        assert list(b.shape) == [m["rows"], m["columns"]], (name, b.shape)
        worst = max(worst, abs(float((a - b).norm() / a.norm()) - m["error"]))
    print("%s holds %d quantised matrices; their errors are as reported, within %.2g"
          % (type(model).__name__, len(held), worst))
    if reported:
        print("it has not quantised: " + ", ".join(sorted(reported)))
    return not reported and worst < 1e-5


def check_kernel(model):
    """What the modules compute of random inputs in BF16, against the dequantised weights."""
    worst, layers = 0.0, {id(layer): layer for _, _, layer in modules(model)}
    generator = torch.Generator().manual_seed(1)
    for layer in layers.values():
        x = torch.randn(33, layer.dequantised.shape[1], generator=generator).bfloat16()
        found = layer.scheme.apply_weights(layer, x, None).double()
        expected = x.double() @ layer.dequantised.double().t()
        worst = max(worst, float((found - expected).norm() / expected.norm()))
    names = sorted({type(layer.scheme.kernel).__name__ for layer in layers.values()})
    print("%s: outputs of %d modules differ from the dequantised weights' by at most %.2g"
          % (", ".join(names), len(layers), worst))
    return len(layers) > 0 and worst < 0.01


def sequences(path, count):
    with open(path, encoding="utf-8") as f:
        rows = [json.loads(line) for line in f]
    return [r.get("prompt_ids") or r["ids"] for r in rows[::max(1, len(rows) // count)][:count]]


def follow(llm, rows):
    """Of each (prompt, reply): the reply's log probabilities, and how many of its tokens are the likeliest."""
    how = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    done = llm.generate([{"prompt_token_ids": p + r} for p, r in rows], how, use_tqdm=False)
    found, first = [], 0
    for (prompt, reply), d in zip(rows, done):
        at = [d.prompt_logprobs[len(prompt) + i][token] for i, token in enumerate(reply)]
        found += [x.logprob for x in at]
        first += sum(x.rank == 1 for x in at)
    return found, first


def continue_greedily(llm, prompts):
    how = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True, detokenize=False)
    done = llm.generate([{"prompt_token_ids": p} for p in prompts], how, use_tqdm=False)
    return [list(d.outputs[0].token_ids) for d in done]


def reply_of_shardd(folder, model, prompt):
    """The reply's tokens up to its end, and their log probabilities."""
    reply = ask_shardd(folder, model, prompt)
    with open(model + "/generation_config.json", encoding="utf-8") as f:
        ends = json.load(f)["eos_token_id"]
    n = next((k for k, (i, _) in enumerate(reply) if i == ends or isinstance(ends, list) and i in ends), len(reply))
    return reply[:n + 1]


def compare(llm, name, prompts, answers):
    """vLLM's model against shardd's answers: mean difference of the log probabilities."""
    rows = [(p, [i for i, _ in a]) for p, a in zip(prompts, answers)]
    found, first = follow(llm, rows)
    expected = [logprob for a in answers for _, logprob in a]
    difference = sum(abs(a - b) for a, b in zip(found, expected)) / len(expected)
    same = sum(a[:len(b)] == b for a, (_, b) in zip(continue_greedily(llm, prompts), rows))
    print("%s: %d of %d replies are the same, %d of %d tokens likeliest, log probabilities differ by %.2g on average"
          % (name, same, len(rows), first, len(expected), difference))
    return difference


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("original")
    parser.add_argument("quantized")
    parser.add_argument("sequences")
    parser.add_argument("--bin", required=True)
    parser.add_argument("--report", required=True)
    parser.add_argument("--count", type=int, default=20)
    args = parser.parse_args()
    with open(args.report, encoding="utf-8") as f:
        report = json.load(f)
    prompts = sequences(args.sequences, args.count)
    answers = {m: [reply_of_shardd(args.bin, m, p) for p in prompts] for m in (args.original, args.quantized)}
    possible = kernels._POSSIBLE_KERNELS[PlatformEnum.CPU]
    possible.append(PlainKernel)
    for kernel in (kernels.CPUWNA16LinearKernel, PlainKernel):
        keep_dequantised(kernel)
    llm = start(args.original)
    noise = compare(llm, "original, vLLM and shardd", prompts, answers[args.original])
    compare(llm, "vLLM with the original, shardd with the quantised", prompts, answers[args.quantized])
    del llm
    llm, ok = start(args.quantized), True
    model = llm.apply_model(lambda model: model)[0]
    ok &= check_matrices(model, args.original, report)
    ok &= check_kernel(model)
    ok &= compare(llm, "quantised, vLLM and shardd", prompts, answers[args.quantized]) < 1.5 * noise + 0.001
    del llm, model
    if any(m["name"].startswith("mtp.") for m in report["matrices"]):
        llm = start(args.quantized, draft=True)
        model = llm.collective_rpc(lambda worker: worker.model_runner.drafter.model)[0]
        ok &= check_matrices(model, args.original, report, draft=True)
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
