#!/usr/bin/env python3
"""Makes a checkpoint in the layout of the published Qwen3.5 models from a text-only one: `text_config`, the prefix
model.language_model., and a vision part (small, random) beside it.

usage: make_nested.py models/shardd-tiny TARGET

For check_vllm.py: vLLM has another class, other names and other rules for such a checkpoint.
"""
import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

VISION = dict(depth=2, hidden_size=64, intermediate_size=128, num_heads=2, patch_size=16, spatial_merge_size=2,
              temporal_patch_size=2, num_position_embeddings=64, deepstack_visual_indexes=[])
IMAGES = dict(image_processor_type="Qwen2VLImageProcessorFast", patch_size=16, temporal_patch_size=2, merge_size=2,
              size=dict(shortest_edge=65536, longest_edge=1048576), image_mean=[0.5] * 3, image_std=[0.5] * 3)


def main():
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    target.mkdir(parents=True)
    text = json.loads((source / "config.json").read_text())
    tokens = {t["content"]: t["id"] for t in json.loads((source / "tokenizer.json").read_text())["added_tokens"]}
    config = dict(architectures=["Qwen3_5ForConditionalGeneration"], model_type="qwen3_5", text_config=text,
                  tie_word_embeddings=text["tie_word_embeddings"],
                  vision_config=dict(VISION, model_type="qwen3_5", out_hidden_size=text["hidden_size"]),
                  **{key: tokens["<|%s|>" % name] for key, name in (
                      ("image_token_id", "image_pad"), ("video_token_id", "video_pad"),
                      ("vision_start_token_id", "vision_start"), ("vision_end_token_id", "vision_end"))})
    torch.manual_seed(1)
    vision = Qwen3_5ForConditionalGeneration(Qwen3_5Config(**config)).model.visual.state_dict()
    weights = {"model.visual." + name: tensor.bfloat16().contiguous() for name, tensor in vision.items()}
    for name, tensor in load_file(source / "model.safetensors").items():
        weights[name.replace("model.", "model.language_model.", 1) if name.startswith("model.") else name] = tensor
    save_file(weights, target / "model.safetensors", metadata=dict(format="pt"))
    (target / "config.json").write_text(json.dumps(config, indent=1))
    (target / "preprocessor_config.json").write_text(json.dumps(IMAGES))
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(source / name, target / name)


if __name__ == "__main__":
    main()
