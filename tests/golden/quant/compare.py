"""For check_*.py in this folder: does shardd say what a plain PyTorch model with the same matrices says?"""
import json
import re
import subprocess

import torch
from transformers import Qwen3_5ForCausalLM

TOKENS = 24
LINE = re.compile(r"^\s*\d+\s+id\s+(\d+)\s+logprob\s+(-?[\d.]+)$", re.M)


def rows_of(path):
    with open(path, encoding="utf-8") as f:
        return [r.get("prompt_ids") or r["ids"] for r in map(json.loads, f)]


def calibration(path):
    return [r for r in rows_of(path) if len(r) >= 40][:32]


def text_name(name):
    return name.replace("model.language_model.", "model.", 1)


def plain_model(original, tensors, matrices):
    """The original in fp32 with the tensors that stayed plain, by name, and the dequantised matrices, by module."""
    net = Qwen3_5ForCausalLM.from_pretrained(original, dtype=torch.float32).eval()
    state = net.state_dict()
    for name, tensor in tensors.items():
        if text_name(name) in state and name.rpartition(".")[0] not in matrices:
            state[text_name(name)].copy_(tensor)
    for name, matrix in matrices.items():
        state[text_name(name) + ".weight"].copy_(matrix)
    return net


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


def compare(name, net, n_matrices, folder, target, prompts):
    """Prints how they differ over the prompts; true where they do not."""
    worst, other = 0.0, 0
    with torch.no_grad():
        for prompt in prompts:
            theirs, ours = follow(net, prompt), ask_shardd(folder, target, prompt)
            same = next((i for i in range(TOKENS) if theirs[i][0] != ours[i][0]), TOKENS)
            other += same < TOKENS
            worst = max([worst] + [abs(theirs[i][1] - ours[i][1]) for i in range(same)])
    print("%s: %d matrices, %d prompts, %d tokens each: %d with another token, log probabilities differ by at most %.2g"
          % (name, n_matrices, len(prompts), TOKENS, other, worst), flush=True)
    return n_matrices > 0 and other == 0 and worst < 1e-3
