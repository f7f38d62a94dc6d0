"""For the check_*.py scripts: greedy replies with their log probabilities, of shardd and of a PyTorch model."""
import re
import subprocess

import torch

TOKENS = 24
LINE = re.compile(r"^\s*\d+\s+id\s+(\d+)\s+logprob\s+(-?[\d.]+)$", re.M)


def ask_shardd(folder, model, prompt):
    """[(id, log probability)] of TOKENS tokens, with float activations and an fp32 cache. The worker is in `folder`."""
    command = [folder + "/shardd-worker-cpu", "--model", model, "--load-format", "safetensors",
               "--activations", "float", "--kv-cache-dtype", "fp32", "--max-model-len", "2048",
               "--max-tokens", str(TOKENS), "--generate-ids", ",".join(map(str, prompt))]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [(int(i), float(p)) for i, p in LINE.findall(out)]


def follow(net, prompt):
    """The same of a model of transformers."""
    ids, found = list(prompt), []
    for _ in range(TOKENS):
        logprobs = net(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        ids.append(int(logprobs.argmax()))
        found.append((ids[-1], float(logprobs.max())))
    return found
