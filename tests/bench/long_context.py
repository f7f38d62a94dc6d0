#!/usr/bin/python3
"""A prompt as long as the model's whole context, end to end, and what it costs those beside it.

    tests/bench/long_context.py                          # 262,144 tokens, a small made-up model on this machine's CPU
    tests/bench/long_context.py --tokens 8192 --no-figures              # of CI
    tests/bench/long_context.py --model DIR [-- FLAGS OF shardd serve ...]

The made-up model has the layers of Qwen3.5 and few, small heads, so that attention to 262,144 tokens is minutes of a
CPU. Checked: a prompt and its answer that fill the context to the last token, one token more is refused, the same
question again goes on from the cache and has the same answer, and so has a service that cuts the prompt otherwise and
splits the model over two ranks. Exit status 1 where something of that is not so.

Figures: the time to the first token; the time of a token after 1,024 and after all of them; and how long others wait
for theirs: the gaps between the tokens of a stream with nothing beside it, and while a prompt of --beside tokens is
read."""
import argparse
import json
import os
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
from shardd_client import Client, Refused, Server, make_request, shardd

HOURS = 4 * 3600
ANSWER = 32


def make_model(folder, tokens):
    """As `shardd synth --config tiny`, with a fourth of its heads."""
    path = os.path.join(folder, "config.json")
    first = shardd("synth", os.path.join(folder, "tiny"), "--config", "tiny", "--config-only")
    if first.returncode != 0:
        sys.exit("long_context.py: " + first.stderr)
    with open(os.path.join(folder, "tiny", "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    config.update(max_position_embeddings=tokens, num_attention_heads=2, num_key_value_heads=1,
                  linear_num_key_heads=4, linear_num_value_heads=4, intermediate_size=256)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(config, f)
    made = shardd("synth", os.path.join(folder, "model"), "--config", path, "--seed", "3")
    if made.returncode != 0:
        sys.exit("long_context.py: " + made.stderr)
    return os.path.join(folder, "model")


def ids_of(n, salt):
    return [(i * 7919 + i // 251 + salt) % 1000 for i in range(n)]


def ask(client, n, salt=0, answer=ANSWER):
    """The answer to n ids, and when each chunk of it came, in ms."""
    request = make_request(ids=ids_of(n, salt), max_tokens=answer, temperature=0.7, seed=5)
    request.stopping.ignore_eos = True
    ids, times, usage, begun = [], [], None, time.monotonic()
    for chunk in client.chunks(request, timeout=HOURS):
        if len(chunk.token_ids) > 0:
            times.append((time.monotonic() - begun) * 1000)
        ids += list(chunk.token_ids)
        usage = chunk.finish.usage if chunk.HasField("finish") else usage
    return ids, times, usage


def gaps(times):
    return sorted(b - a for a, b in zip(times, times[1:]))


def tell_gaps(what, times):
    all_gaps = gaps(times)
    if all_gaps:
        print("%-44s %8.1f ms, 99 of 100 within %.1f, longest %.1f" % (
            what, all_gaps[len(all_gaps) // 2], all_gaps[len(all_gaps) * 99 // 100], all_gaps[-1]), flush=True)


def expect(condition, what):
    if not condition:
        sys.exit("long_context.py: " + what)


def check_whole(client, tokens):
    """Returns the answer."""
    ids, times, usage = ask(client, tokens - ANSWER)
    expect(len(ids) == ANSWER and usage.prompt_tokens == tokens - ANSWER, "the answer is not whole")
    print("%d tokens: the first of the answer after %.1f s" % (usage.prompt_tokens, times[0] / 1000), flush=True)
    tell_gaps("a token after all of them", times)
    try:
        ask(client, tokens - ANSWER + 1)
        expect(False, "one token more than the context was taken")
    except Refused as refused:
        expect(refused.word == "context_too_long", str(refused))
    again, times, usage = ask(client, tokens - ANSWER)
    expect(usage.cached_tokens >= tokens - ANSWER - 64, "only %d tokens came from the cache" % usage.cached_tokens)
    expect(again == ids, "the answer from the cache is another one")
    print("the same again: the first after %.2f s, %d tokens from the cache" % (times[0] / 1000, usage.cached_tokens))
    return ids


def measure_others(address, tokens, beside):
    """Gaps of a stream that has others' prompt beside it."""
    with Client(address) as client, Client(address) as other:
        tell_gaps("a token after 1,024", ask(client, 1024, 1, 100)[1])
        done, long_one = threading.Event(), []

        def read():
            long_one.append(ask(other, beside, 2, 1))
            done.set()
        thread = threading.Thread(target=read)
        times, begun = [], time.monotonic()
        request = make_request(ids=ids_of(1024, 1), max_tokens=tokens - 1100, seed=5)
        request.stopping.ignore_eos = True
        stream = client.stream(request, timeout=HOURS)
        next(stream)
        thread.start()
        for _ in stream:
            times.append((time.monotonic() - begun) * 1000)
            if done.is_set():
                stream.cancel()
                break
        thread.join()
    expect(len(long_one) == 1, "the long prompt beside it was not answered")
    tell_gaps("while a prompt of %d is read" % beside, times)
    print("that prompt's first token after %.1f s" % (long_one[0][1][0] / 1000))


def run(options, model):
    flags = options.flags or ["--max-num-seqs", "4"]
    with Server(model, "--max-model-len", str(options.tokens), *flags) as server:
        with server.client() as client:
            ids = check_whole(client, options.tokens)
        if options.figures:
            measure_others(server.address, options.tokens, min(options.beside, options.tokens // 2))
    if options.split:
        with Server(model, "--max-model-len", str(options.tokens), "--max-num-batched-tokens", "200",
                    "--tensor-parallel-size", "2", "--prefix-cache", "off", "--max-num-seqs", "2") as server:
            with server.client() as client:
                other, times, _ = ask(client, options.tokens - ANSWER)
        expect(other == ids, "two ranks and other chunks give another answer")
        print("two ranks, chunks of 200 tokens: the same answer, the first token after %.1f s" % (times[0] / 1000))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=262144)
    parser.add_argument("--beside", type=int, default=100000)
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="check only")
    parser.add_argument("--no-split", dest="split", action="store_false", help="without the second service")
    parser.add_argument("--model")
    parser.add_argument("flags", nargs="*", help="of shardd serve, after --")
    options = parser.parse_args()
    if options.model:
        run(options, options.model)
        return
    with tempfile.TemporaryDirectory(prefix="shardd-long-") as folder:
        run(options, make_model(folder, options.tokens))


if __name__ == "__main__":
    main()
