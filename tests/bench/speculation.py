#!/usr/bin/python3
"""What speculation is worth in a running service: tokens a round, which drafts are right, and tokens/s against a
service without, at several numbers of streams.

    tests/bench/speculation.py                          # models/shardd-tiny on this machine's CPU
    tests/bench/speculation.py --model DIR [-- FLAGS OF shardd serve ...]
    tests/bench/speculation.py --draft-vocab ids.txt    # the MTP layer's drafts among these ids

Three drafters: mtp (the model's layer, on prompts of tests/eval), lookup (on a document that the prompt asks to be
repeated), auto (every other request of both kinds). Of each a service with and one without speculation stand side by
side and answer the same requests by turns, so that a machine which others use too slows both; "times" is the median of
the pairs. Answers are greedy, --tokens long, and have to be the same with and without. Exit status 1 where one is not,
or where a median is below --least.

"a round" is tokens of a sequence in a step that had drafts for it; "of all" the part of all tokens that were drafts;
"by position" how many of 100 drafts at each place were right, and "-" where there were none.
"""
import argparse
import json
import os
import re
import socket
import statistics
import sys
import threading
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "e2e"))
from shardd_client import ROOT, Server, make_request

CASES = {"mtp": "prompts", "lookup": "document", "auto": "both"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def prompts_of_eval():
    with open(os.path.join(ROOT, "tests", "eval", "prompts.jsonl"), encoding="utf-8") as f:
        return [json.loads(line)["prompt_ids"] for line in f]


def documents(bytes_each):
    """Pieces of a page, each to be said again."""
    with open(os.path.join(ROOT, "docs", "architecture.md"), encoding="utf-8") as f:
        text = f.read()
    return [text[at:at + bytes_each] for at in range(0, len(text) - bytes_each, bytes_each)]


def requests_of(kind, n, tokens):
    prompts, texts = prompts_of_eval(), documents(500)
    made = []
    for i in range(n):
        if kind == "document" or (kind == "both" and i % 2):
            said = "Repeat the following text exactly.\n\n%s" % texts[i % len(texts)]
            request = make_request(chat=[("user", said)], max_tokens=tokens)
        else:
            request = make_request(ids=prompts[7 * i % len(prompts)], max_tokens=tokens)
        request.stopping.ignore_eos = True
        made.append(request)
    return made


class Service:
    def __init__(self, o, how):
        self.port = free_port()
        flags = ["--speculation", how, "--speculative-tokens", str(o.drafts if how != "off" else 0)]
        if o.draft_vocab and how in ("mtp", "auto"):
            flags += ["--draft-vocab", o.draft_vocab]
        self.server = Server(o.model, *flags, "--prefix-cache", "off", "--max-num-seqs", str(max(o.streams)),
                             "--metrics-listen", "127.0.0.1:%d" % self.port, *o.flags)

    def counters(self):
        """{(counter, drafter, position)}, and draft_rounds_total."""
        text = urllib.request.urlopen("http://127.0.0.1:%d/metrics" % self.port).read().decode()
        found = {(name, drafter, int(position)): float(value) for name, drafter, position, value in re.findall(
            r'^shardd_drafts_(proposed|accepted)_total\{drafter="(\w+)",position="(\d+)"\} ([\d.e+]+)', text, re.M)}
        rounds = re.search(r"^shardd_draft_rounds_total ([\d.e+]+)", text, re.M)
        found["rounds"] = float(rounds[1]) if rounds else 0
        return found

    def answer(self, requests):
        """Seconds until all are answered, prompts included; and the ids of each answer."""
        said, failed = [None] * len(requests), []

        def one(i):
            try:
                with self.server.client() as client:
                    said[i] = client.generate(requests[i], timeout=3600).ids
            except Exception as e:  # told when all threads have ended
                failed.append(e)

        threads = [threading.Thread(target=one, args=(i,)) for i in range(len(requests))]
        begin = time.monotonic()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        if failed:
            sys.exit("speculation.py: %s" % failed[0])
        return time.monotonic() - begin, said

    def stop(self):
        self.server.stop()


def measure(o, how, n):
    """A row: of so many streams, by turns without and with."""
    requests = requests_of(CASES[how], n, o.tokens)
    pair = [Service(o, who) for who in ("off", how)]
    try:
        for service in pair:  # graphs, caches, what a step takes
            service.answer(requests)
        before, times, seconds, same = pair[1].counters(), [], ([], []), True
        for turn in range(o.repeat):
            order = (0, 1) if turn % 2 else (1, 0)
            took = dict((k, pair[k].answer(requests)) for k in order)
            same = same and took[0][1] == took[1][1]
            times.append(took[0][0] / took[1][0])
            for k in (0, 1):
                seconds[k].append(took[k][0])
        counted = {key: value - before.get(key, 0) for key, value in pair[1].counters().items()}
    finally:
        for service in pair:
            service.stop()
    return times, seconds, same, counted


def tell(o, how, n, measured):
    times, seconds, same, counted = measured
    tokens = n * o.tokens
    accepted = sum(v for key, v in counted.items() if key[0] == "accepted")
    by_position = []
    for i in range(o.drafts):
        tried, right = (sum(counted.get((what, who, i), 0) for who in ("mtp", "lookup"))
                        for what in ("proposed", "accepted"))
        by_position.append("%.0f" % (100 * right / tried) if tried else "-")
    rounds = counted["rounds"]
    rates = [tokens / statistics.median(each) for each in seconds]
    each_round = "%.2f" % (1 + accepted / rounds) if rounds else "-"
    print("%-7s %7d %11.1f %9.1f %6.2f %5.2f-%4.2f %9s %7.0f %%  %s%s" % (
        how, n, *rates, statistics.median(times), min(times), max(times), each_round,
        100 * accepted / (tokens * o.repeat), " ".join(by_position), "" if same else "   ANSWERS DIFFER"), flush=True)
    return same and statistics.median(times) >= o.least


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=os.path.join(ROOT, "models", "shardd-tiny"))
    parser.add_argument("--streams", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 8, 16])
    parser.add_argument("--only", action="append", choices=CASES, help="may be given several times")
    parser.add_argument("--tokens", type=int, default=256, help="of each answer (default 256)")
    parser.add_argument("--drafts", type=int, default=7, help="--speculative-tokens (default 7)")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of measurements (default 5)")
    parser.add_argument("--least", type=float, default=0, help="median of the pairs' times (default 0: any)")
    parser.add_argument("--draft-vocab", help="file for the MTP layer's drafts")
    parser.add_argument("flags", nargs="*", help="after --: flags of shardd serve")
    o = parser.parse_args()
    print("        streams  tokens/s: off      with  times  least-most   a round  of all  by position")
    good = [tell(o, how, n, measure(o, how, n)) for how in CASES if how in (o.only or CASES) for n in o.streams]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
