"""Packed training batches: text of the corpus and freshly drawn samples of tasks.py, from a seed.

Batch rows are SEQUENCE + 2 ids of uint16. Bit 15 marks a target that counts fully: all of the corpus, and
answers with their thinking; prompts count PROMPT_WEIGHT. Row number i is the same however many processes
make the rows, so that a run can be resumed or repeated.
"""
import json
import lzma
import multiprocessing
import random

import numpy

import tasks

SEQUENCE = 1152
ROWS = 8
FULL = 0x8000
PROMPT_WEIGHT = 0.05
TEXT_SHARE = 0.25


class Corpus:
    """The output of corpus.py, in memory."""

    def __init__(self, path):
        self.texts, self.packages = [], []
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                entry = json.loads(line)
                if entry["kind"] == "versions":
                    continue
                text = entry["text"].replace("<|", "< |").replace("<think>", "think").replace("</think>", "think")
                self.texts.append(text)
                if entry["kind"] == "package" and 80 < len(text) and len(entry["name"]) < 25:
                    self.packages.append((entry["name"], text))
        self.long = [text for text in self.texts if len(text) > 5000]
        self.short = [text for text in self.texts if len(text) > 300]

    def window(self, rng, tokens):
        """About this many tokens of running text, from the start of a line or sentence."""
        size = tokens * 4
        text = rng.choice(self.short if size < 250 else self.long)
        at = rng.randrange(max(1, len(text) - size))
        start = max(text.find("\n", at, at + 200), text.find(". ", at, at + 100) + 1)
        cut = text[max(start, at):][:size]
        return cut.rsplit(" ", 1)[0].strip()


def row(tokenizer, corpus, ids, seed, number):
    """Row `number` of the run: SEQUENCE + 2 ids with their marks."""
    rng = random.Random(f"{seed}-{number}")
    end, out = tokenizer.token_to_id("<|endoftext|>"), []
    want = SEQUENCE + 2
    if rng.random() < TEXT_SHARE:
        while len(out) < want:
            if rng.random() < 0.4:
                name, text = rng.choice(corpus.packages)
                piece = tokenizer.encode(text).ids
            else:
                at = rng.randrange(len(ids) - want)
                piece = ids[at:at + rng.choice((200, 500, want))].tolist()
            out += [x | FULL for x in piece] + [end | FULL]
    far = not out and rng.random() < 0.2
    while len(out) < want:
        s = tasks.training_sample(rng, corpus.window, corpus.packages)
        if far and not out:
            s = tasks.recall(rng, rng.random() < 0.5, corpus.window, rng.randint(200, 900))
            if tasks.held_out(s):
                continue
        prompt = tokenizer.encode(tasks.render_prompt(s)).ids
        answer = tokenizer.encode(tasks.render_answer(s)).ids
        if len(prompt) + len(answer) > want:
            continue
        if len(out) + len(prompt) + len(answer) > want and len(out) < want - 200:
            continue
        out += prompt + [x | FULL for x in answer] + [(tokenizer.encode("\n").ids[0])]
    return out[:want]


def worker(tokenizer_path, corpus, ids, seed, queue, first, step):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(tokenizer_path)
    block = first
    while True:
        rows = [row(tokenizer, corpus, ids, seed, block * ROWS + i) for i in range(ROWS)]
        queue.put(numpy.array(rows, dtype=numpy.uint16))
        block += step


def corpus_ids(tokenizer, corpus):
    """The whole corpus as ids, its texts separated by <|endoftext|>."""
    end = numpy.array([tokenizer.token_to_id("<|endoftext|>")], dtype=numpy.uint16)
    parts = []
    for encoding in tokenizer.encode_batch([text for text in corpus.texts]):
        parts += [numpy.array(encoding.ids, dtype=numpy.uint16), end]
    return numpy.concatenate(parts)


class Batches:
    """Batches of `rows` rows from `processes` processes, starting with batch number `start`."""

    def __init__(self, tokenizer_path, corpus, ids, seed, rows, processes, start=0):
        assert rows % ROWS == 0
        self.per, self.next = rows // ROWS, start * (rows // ROWS)
        self.context, self.processes = multiprocessing.get_context("fork"), processes
        self.queues = [self.context.Queue(16) for _ in range(processes)]
        self.workers = []
        for i in range(processes):
            first = self.next + (i - self.next) % processes
            self.workers.append(self.context.Process(target=worker, daemon=True, args=(
                tokenizer_path, corpus, ids, seed, self.queues[i], first, processes)))
            self.workers[-1].start()

    def get(self):
        blocks = []
        for _ in range(self.per):
            blocks.append(self.queues[self.next % self.processes].get())
            self.next += 1
        return numpy.concatenate(blocks)

    def stop(self):
        for process in self.workers:
            process.kill()
