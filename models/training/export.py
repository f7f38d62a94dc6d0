#!/usr/bin/env python3
"""Makes the Hugging Face folder of the bundled model.

usage: export.py WEIGHTS.safetensors TOKENIZER_DIR OUTDIR
"""
import json
import os
import shutil
import sys
from pathlib import Path

from tokenizers import Tokenizer

import model


def main():
    weights, tokenizer, out = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    ids = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    end, text_end = ids.token_to_id("<|im_end|>"), ids.token_to_id("<|endoftext|>")
    config = dict(model.CONFIG, eos_token_id=text_end, pad_token_id=text_end)
    generation = dict(bos_token_id=None, do_sample=True, eos_token_id=[end, text_end], pad_token_id=text_end,
                      temperature=0.3, top_k=20, top_p=0.95)
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    shutil.copyfile(weights, out / "model.safetensors.new")  # a server may have the old file mapped
    os.replace(out / "model.safetensors.new", out / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / name, out / name)
    shutil.copyfile(Path(__file__).parent.parent / "chat_template.jinja", out / "chat_template.jinja")


if __name__ == "__main__":
    main()
