#!/usr/bin/env python3
"""Trains the bundled model's tokenizer: byte-level BPE with Qwen3.5's normaliser, regex and added tokens.

usage: make_tokenizer.py CORPUS.jsonl.xz OUTDIR

Learns from the corpus and from rendered samples of every skill. Also compares tasks.py's rendering with
chat_template.jinja and fails where they differ.
"""
import json
import os
import random
import sys
from pathlib import Path

os.environ.setdefault("RAYON_NUM_THREADS", "2")

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import trainers

import tasks
from data import Corpus

SEED = 1
BASE_VOCAB = 3900
REGEX = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
         r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPECIAL = """<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>
<|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>""".split()
PLAIN = """<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|>
<tool_response> </tool_response> <think> </think>""".split()
AUDIO = """<|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single>
<|audio_pad|>""".split()


def train(corpus, out):
    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(REGEX), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)])
    tok.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    rng = random.Random(SEED)
    texts = [text[:20000] for text in corpus.texts if rng.random() < 0.5]
    for _ in range(6000):
        s = tasks.training_sample(rng, corpus.window, corpus.packages)
        texts.append("\n".join(m["content"] for m in s["messages"]) + "\n" + s["answer"] + "\n" + (s["thinking"] or ""))
    texts += [tasks.TOOL_TEXT] * 20
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCAB, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=[], show_progress=False)
    tok.train_from_iterator(texts, trainer)
    assert tok.get_vocab_size() == BASE_VOCAB
    tok.add_tokens([AddedToken(t, special=special, normalized=False)
                    for names, special in ((SPECIAL, True), (PLAIN, False), (AUDIO, True)) for t in names])
    assert tok.token_to_id("<|endoftext|>") == BASE_VOCAB
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"), pretty=False)
    config = dict(add_bos_token=False, add_prefix_space=False, bos_token=None, clean_up_tokenization_spaces=False,
                  eos_token="<|im_end|>", errors="replace", model_max_length=4096, pad_token="<|endoftext|>",
                  split_special_tokens=False, tokenizer_class="Qwen2Tokenizer", unk_token=None)
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def check_rendering(corpus):
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def fail(message):
        raise jinja2.exceptions.TemplateError(message)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = lambda x: json.dumps(x, ensure_ascii=False)
    env.globals["raise_exception"] = fail
    template = env.from_string((Path(__file__).parent.parent / "chat_template.jinja").read_text())
    rng = random.Random(2)
    for _ in range(3000):
        s = tasks.training_sample(rng, corpus.window, corpus.packages)
        theirs = template.render(messages=s["messages"], tools=s["tools"], add_generation_prompt=True,
                                 enable_thinking=s["thinking"] is not None)
        assert theirs == tasks.render_prompt(s), (theirs, tasks.render_prompt(s))


def main():
    corpus = Corpus(sys.argv[1])
    check_rendering(corpus)
    train(corpus, Path(sys.argv[2]))


if __name__ == "__main__":
    main()
