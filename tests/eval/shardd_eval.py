#!/usr/bin/python3
"""Asks a served model every prompt of a file and judges the replies: accuracy per skill, speed, and whether the
replies are the same at every tensor-parallel size and the same as Hugging Face transformers gave.

usage: shardd_eval.py [MODEL_DIR] [--tensor-parallel-size 1,2,4] [--prompts FILE] [--streams 64]
                      [--kv-cache-dtype auto|bf16|fp32] [--min-accuracy PERCENT]
       shardd_eval.py --address HOST:PORT [...]          judges a service that is running already
       shardd_eval.py --subset 12 --from REPLIES.jsonl   makes the prompts file: the first 12 of each group

Without arguments: models/shardd-tiny and the held-out prompts beside this script. Exits 1 where replies differ between
sizes, where a tool call is not parsed as the model wrote it, or where a row is below --min-accuracy.

A prompts file has one JSON object a line, as models/training/evaluate.py --out writes them: group, messages, tools,
thinking, answer (the right one), reply (what transformers gave, greedy), right, and where they are there prompt_ids,
reply_ids, mtp_good and mtp_tried (of the reply's tokens, how many the MTP head guessed one step early).
"""
import argparse
import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "tests/e2e"), os.path.join(ROOT, "models/training")]

import tasks  # noqa: E402
from shardd_client import PATIENCE, Client, Server, pb  # noqa: E402

MODEL = os.path.join(ROOT, "models/shardd-tiny")
PROMPTS = os.path.join(HERE, "prompts.jsonl")
SIZES = (1, 2, 4)
STREAMS_MAX = 64
NEW_TOKENS = 160  # as many as models/training/evaluate.py lets transformers generate
SUBSET_FIELDS = ("group", "right", "answer", "reply", "messages", "tools", "thinking", "prompt_ids", "reply_ids",
                 "mtp_good", "mtp_tried")
IM_END = "<|im_end|>"
CALL = re.compile(r"<tool_call>\n<function=([^>\n]+)>\n(.*?)</function>\n</tool_call>", re.S)
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n(.*?)\n</parameter>\n", re.S)


def load(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def right(record, reply):
    """Whether the reply (raw text) answers the record's prompt, by the rule that the training judges by."""
    answer = record["answer"].removesuffix(IM_END)
    if record["thinking"] is not None:
        answer = answer.removeprefix("%s\n</think>\n\n" % record["thinking"])
    return tasks.right(dict(skill=record["group"].split(",")[0], thinking=record["thinking"], answer=answer), reply)


def request_of(record, raw=True):
    """The record's prompt as a client sends it: messages and tools, not rendered text."""
    request = pb.GenerateRequest()
    for message in record["messages"]:
        sent = request.chat.messages.add(role=message["role"])
        if message["content"]:
            sent.content.add(text=message["content"])
        if message.get("reasoning_content"):
            sent.reasoning = message["reasoning_content"]
        for call in message.get("tool_calls", ()):
            sent.tool_calls.add(name=call["function"]["name"],
                                arguments_json=json.dumps(call["function"]["arguments"]).encode())
    for tool in record["tools"] or ():
        request.chat.tools.add(json=json.dumps(tool, ensure_ascii=False).encode())
    request.chat.enable_thinking = record["thinking"] is not None
    request.sampling.temperature = 0
    request.stopping.max_tokens = NEW_TOKENS
    request.output.raw = raw
    request.output.token_ids = request.output.prompt_token_ids = True
    return request


def ask_all(client, records, streams=STREAMS_MAX, raw=True):
    """The answers to all records, in their order; `streams` of them run at a time."""
    with ThreadPoolExecutor(streams) as pool:
        return list(pool.map(lambda r: client.generate(request_of(r, raw), timeout=600 * PATIENCE), records))


def calls_written(reply):
    """The tool calls in a raw reply: [(name, {parameter: text})]."""
    return [(name, dict(PARAMETER.findall(body))) for name, body in CALL.findall(reply)]


def calls_differ(record, reply, answer):
    """What is wrong with how the service parsed the calls of a raw reply; empty if nothing."""
    written = calls_written(reply)
    parsed = [answer.tools[i] for i in sorted(answer.tools)]
    if [c["name"] for c in parsed] != [name for name, _ in written]:
        return "parsed %s, written %s" % ([c["name"] for c in parsed], [name for name, _ in written])
    schemas = {t["function"]["name"]: t["function"]["parameters"]["properties"] for t in record["tools"]}
    for call, (name, texts) in zip(parsed, written):
        arguments = json.loads(call["arguments"])
        shown = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
        if shown != texts or not call["done"]:
            return "%s: parsed %s, written %s" % (name, arguments, texts)
        for parameter, value in arguments.items():
            kind = schemas.get(name, {}).get(parameter, {}).get("type")
            if kind in ("integer", "number") and isinstance(value, str):
                return "%s: %s is %r, its schema says %s" % (name, parameter, value, kind)
    if answer.reason != "tool_calls":
        return "ended with %s" % answer.reason
    thought = reply.partition("</think>")[0].strip() if record["thinking"] is not None else ""
    if answer.reasoning != thought:
        return "reasoning %r, written %r" % (answer.reasoning, thought)
    return ""


class Result:
    """What one service made of all the prompts."""

    def __init__(self, label, client, records, streams):
        began = time.monotonic()
        answers = ask_all(client, records, streams)
        self.seconds = time.monotonic() - began
        self.label = label
        self.replies = [a.text for a in answers]
        self.ids = [a.ids for a in answers]
        self.right = [right(r, reply) for r, reply in zip(records, self.replies)]
        self.tokens = sum(a.n_tokens for a in answers)
        self.prompt_tokens = sum(a.started.prompt_tokens for a in answers)
        self.other_prompts = [i for i, (r, a) in enumerate(zip(records, answers))
                              if "prompt_ids" in r and list(a.started.prompt_token_ids) != r["prompt_ids"]]
        with_calls = [i for i, r in enumerate(records) if r["tools"] and calls_written(self.replies[i])]
        parsed = ask_all(client, [records[i] for i in with_calls], streams, raw=False)
        self.calls = len(with_calls)
        wrong = ((i, calls_differ(records[i], self.replies[i], a)) for i, a in zip(with_calls, parsed))
        self.wrong_calls = [(i, what) for i, what in wrong if what]

    def differing(self, other):
        """Indices of the replies that are not the other's, token for token."""
        return [i for i, (a, b) in enumerate(zip(self.ids, other.ids)) if a != b]

    def differing_from_recorded(self, records):
        return [i for i, r in enumerate(records)
                if self.replies[i] != r["reply"] or self.ids[i] != r.get("reply_ids", self.ids[i])]


def serve_and_ask(model, size, records, streams=STREAMS_MAX, kv_dtype="auto", activations="int8"):
    """kv_dtype fp32 computes as the recorded replies were; auto is BF16 for a BF16 model, and rounding may then choose
    another token where two are as good as equal."""
    flags = ("--tensor-parallel-size", str(size), "--max-num-seqs", str(STREAMS_MAX), "--kv-cache-dtype", kv_dtype,
             "--activations", activations)
    with Server(model, *flags) as server, server.client() as client:
        return Result("tp %d" % size, client, records, streams)


def accuracy(records, rights):
    """{group: [right, prompts]} in the order of the file."""
    rows = {}
    for record, good in zip(records, rights):
        row = rows.setdefault(record["group"], [0, 0])
        row[0] += good
        row[1] += 1
    return rows


def print_table(records, results):
    columns = [accuracy(records, [r["right"] for r in records])] + [accuracy(records, r.right) for r in results]
    print("%-34s %7s %13s" % ("right answers, %", "prompts", "transformers")
          + "".join(" %8s" % r.label for r in results))
    for group, (_, count) in columns[0].items():
        print("%-34s %7d %13.1f" % (group, count, 100 * columns[0][group][0] / count)
              + "".join(" %8.1f" % (100 * c[group][0] / count) for c in columns[1:]))
    good = sum(r.get("mtp_good", 0) for r in records)
    tried = sum(r.get("mtp_tried", 0) for r in records)
    print()
    for r in results:
        print("%s: %d replies, %d tokens in %.1f s (%.0f tokens/s) after %d tokens of prompts"
              % (r.label, len(records), r.tokens, r.seconds, r.tokens / r.seconds, r.prompt_tokens))
    if tried:
        print("recorded MTP acceptance: %.1f %% of %d tokens; unit-tp-mtp_acceptance counts it with shardd"
              % (100 * good / tried, tried))


def apart(a, b):
    """Two texts from a little before where they part."""
    at = max(0, len(os.path.commonprefix((a, b))) - 10)
    return "from character %d: %r and %r" % (at, a[at:at + 40], b[at:at + 40])


def show(records, indices, say):
    for i in indices[:5]:
        print("    %s, line %d, ...%r: %s" % (records[i]["group"], i + 1, records[i]["messages"][-1]["content"][-60:],
                                              say(i)))
    if len(indices) > 5:
        print("    and %d more" % (len(indices) - 5))


def print_sameness(records, results):
    """Prints what is the same as what; returns how many replies differ between the services."""
    first, count, different = results[0], len(records), set()
    for other in results[1:]:
        found = first.differing(other)
        different.update(found)
        print("%s and %s: %d of %d replies the same, token for token" % (first.label, other.label, count - len(found),
                                                                       count))
        show(records, found, lambda i, other=other: apart(first.replies[i], other.replies[i]))
    for r in results:
        found = r.differing_from_recorded(records)
        print("%s and transformers: %d of %d replies the same" % (r.label, count - len(found), count))
        show(records, found, lambda i, r=r: apart(r.replies[i], records[i]["reply"]))
        if r.other_prompts:
            print("%s: %d prompts are not the recorded tokens" % (r.label, len(r.other_prompts)))
        print("%s: %d of %d replies with tool calls parsed as the model wrote them"
              % (r.label, r.calls - len(r.wrong_calls), r.calls))
        wrong = dict(r.wrong_calls)
        show(records, list(wrong), wrong.get)
    return len(different)


def below(records, results, percent):
    """The rows whose accuracy is under `percent`, as sentences."""
    return ["%s: %s is at %.1f %%, below %g %%" % (r.label, group, 100 * good / count, percent)
            for r in results for group, (good, count) in accuracy(records, r.right).items()
            if 100 * good < percent * count]


def subset(records, count):
    """The first `count` records of each group, with the fields that the tests need."""
    taken, rows = {}, []
    for record in records:
        missing = [f for f in SUBSET_FIELDS if f not in record]
        if missing:
            raise SystemExit("shardd_eval: a record lacks %s: make them anew with models/training/evaluate.py --out"
                             % ", ".join(missing))
        taken[record["group"]] = taken.get(record["group"], 0) + 1
        if taken[record["group"]] <= count:
            rows.append({f: record[f] for f in SUBSET_FIELDS})
    return rows


def write_subset(source, count, path):
    rows = subset(load(source), count)
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
    print("%s: %d prompts of %d groups" % (path, len(rows), len({r["group"] for r in rows})))


def parse_arguments():
    parser = argparse.ArgumentParser(description="Judges the replies of a served model, see the top of this file.")
    parser.add_argument("model", nargs="?", default=MODEL)
    parser.add_argument("--tensor-parallel-size", "-tp", default=",".join(map(str, SIZES)))
    parser.add_argument("--address", help="a service that is running already")
    parser.add_argument("--prompts", default=PROMPTS)
    parser.add_argument("--streams", type=int, default=STREAMS_MAX, help="requests at a time, at most %d" % STREAMS_MAX)
    parser.add_argument("--kv-cache-dtype", default="auto", help="fp32 computes as the recorded replies were")
    parser.add_argument("--min-accuracy", type=float, default=0, metavar="PERCENT")
    parser.add_argument("--subset", type=int, metavar="N", help="write the first N records of each group to --prompts")
    parser.add_argument("--from", dest="source", metavar="FILE", help="where --subset takes them from")
    args = parser.parse_args()
    if (args.subset is None) != (args.source is None):
        parser.error("--subset and --from go together")
    if not 1 <= args.streams <= STREAMS_MAX:
        parser.error("--streams is 1 to %d" % STREAMS_MAX)
    return args


def main():
    args = parse_arguments()
    if args.source:
        write_subset(args.source, args.subset, args.prompts)
        return 0
    records = load(args.prompts)
    if args.address:
        with Client(args.address) as client:
            size = client.call("GetServerInfo").tensor_parallel_size
            results = [Result("tp %d" % size, client, records, args.streams)]
    else:
        sizes = [int(size) for size in args.tensor_parallel_size.split(",")]
        results = [serve_and_ask(args.model, size, records, args.streams, args.kv_cache_dtype) for size in sizes]
    print_table(records, results)
    different = print_sameness(records, results)
    low = below(records, results, args.min_accuracy)
    for line in low:
        print(line)
    return 1 if different or low or any(r.wrong_calls for r in results) else 0


if __name__ == "__main__":
    sys.exit(main())
