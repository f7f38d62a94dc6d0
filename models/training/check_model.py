#!/usr/bin/env python3
"""Compares model.py with transformers' Qwen3_5ForCausalLM on random weights and ids (CPU, fp32)."""
import torch
from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

import model


def main():
    torch.manual_seed(1)
    ours = model.Tiny()
    ours.initialise(2)
    with torch.no_grad():
        for name, p in ours.named_parameters():
            if "norm" in name:
                p.add_(torch.randn_like(p) * 0.2)
    config = {k: v for k, v in model.CONFIG.items() if k not in ("architectures", "dtype")}
    theirs = Qwen3_5ForCausalLM(Qwen3_5TextConfig(**config)).eval()
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("mtp.")}
    missing, extra = theirs.load_state_dict(state, strict=False)
    assert not extra and all("lm_head" in k for k in missing), (missing, extra)
    theirs.tie_weights()
    print(sum(p.numel() for p in ours.parameters()), "parameters")
    for length in (1, 63, 64, 65, 200, 333):
        ids = torch.randint(0, 3900, (2, length))
        with torch.no_grad():
            a, b = ours.logits(ours.hidden(ids)), theirs(ids).logits
        error = (a - b).abs().max().item()
        print(f"length {length}: largest difference {error:.2e} of {b.abs().max().item():.2f}")
        assert error < 1e-3, "model.py and transformers differ"
    ours.logits(ours.draft(ours.hidden(ids), ids)).logsumexp(-1).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters())
    a = (torch.randn(3, 64, 64, dtype=torch.float64) * 0.2).tril(-1).requires_grad_()
    weight = torch.randn(3, 64, 64, dtype=torch.float64)
    (model.inverse(a) * weight).sum().backward()
    other = a.detach().clone().requires_grad_()
    (torch.linalg.inv(other + torch.eye(64, dtype=torch.float64)) * weight).sum().backward()
    assert torch.allclose(a.grad, other.grad.tril(-1), rtol=1e-6), "gradient of inverse"
    print("ok")


if __name__ == "__main__":
    main()
