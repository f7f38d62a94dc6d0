"""For check_*.py in this folder: does shardd say what a plain PyTorch model with the same matrices says?"""
import json
import sys
from pathlib import Path

import torch
from transformers import Qwen3_5ForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from greedy import TOKENS, ask_shardd, follow  # noqa: E402


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
