#!/usr/bin/python3
"""An agent's conversation of 20 turns against a running service, with the prefix cache and without it.

    tests/bench/agent/replay.py                        # a small made-up model on this machine's CPU
    tests/bench/agent/replay.py --model DIR [-- FLAGS OF shardd serve ...]
    tests/bench/agent/replay.py --agents 4             # as many at once, each with a conversation of its own

Each turn sends all messages so far, as a chat client does, and has an answer of --answer tokens, greedy. What the
assistant said in the next turn is the trace's, not the answer: so what was said before is the same for every model, and
what a model that follows the trace would have left in its cache by generating it is not there; a real agent finds more.

Of a turn's prompt tokens those of the turn before were seen before: "reused" is how many of these were not computed.
Two servers run one after another, and every answer has to be the same in both; exit status 1 where one is not, or where
less was reused than --least.
"""
import argparse
import json
import os
import sys
import tempfile
import threading
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(HERE)), "e2e"))
from shardd_client import ROOT, Client, Server, make_request, pb, shardd


def read_trace(turns):
    """The tools, and each turn's new messages."""
    with open(os.path.join(HERE, "trace.jsonl"), encoding="utf-8") as f:
        lines = [json.loads(line) for line in f]
    if not 1 < turns <= len(lines):
        sys.exit("replay.py: --turns is 2 to %d" % len(lines))
    return lines[0]["tools"], [line["messages"] for line in lines[:turns]]


def add_message(chat, message):
    to = chat.messages.add(role=message["role"])
    if message["content"]:
        to.content.add(text=message["content"])
    if "reasoning" in message:
        to.reasoning = message["reasoning"]
    for call in message.get("tool_calls", ()):
        to.tool_calls.add(id=call["id"], name=call["name"], arguments_json=json.dumps(call["arguments"]).encode())


def make_model(folder):
    """The shape of the bundled model with noise for weights, its tokenizer, and room for the whole conversation."""
    tiny = os.path.join(ROOT, "models", "shardd-tiny")
    with open(os.path.join(tiny, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    config["max_position_embeddings"] = 65536
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(config, f)
    model = os.path.join(folder, "model")
    made = shardd("synth", model, "--config", os.path.join(folder, "config.json"), "--tokenizer", tiny)
    if made.returncode != 0:
        sys.exit("replay.py: " + made.stderr)
    return model


class Agent:
    """One conversation, and what each of its turns took."""

    def __init__(self, number, tools, turns, answer):
        self.number, self.tools, self.turns, self.answer = number, tools, turns, answer
        self.rows = []  # (prompt tokens, cached tokens, ms to the first token, ids)

    def run(self, address):
        with Client(address) as client:
            chat = pb.ChatInput(enable_thinking=True)
            for tool in self.tools:
                chat.tools.add(json=json.dumps(tool).encode())
            for n, messages in enumerate(self.turns):
                for message in messages:
                    if n == 0 and message["role"] == "system":
                        message = {**message, "content": "You are agent %d. %s" % (self.number, message["content"])}
                    add_message(chat, message)
                request = make_request(max_tokens=self.answer)
                request.chat.CopyFrom(chat)
                request.stopping.ignore_eos = True
                answer = client.generate(request, timeout=3600)
                usage = answer.finish.usage
                self.rows.append((usage.prompt_tokens, usage.cached_tokens, usage.first_token_ms, answer.ids))


def replay(o, model, cache):
    """All agents at once against a server of its own. The agents, and how long it took."""
    tools, turns = read_trace(o.turns)
    agents = [Agent(i, tools, turns, o.answer) for i in range(o.agents)]
    flags = ["--max-num-seqs", str(max(4, o.agents)), "--prefix-cache", cache] + o.flags
    with Server(model, *flags) as server:
        threads = [threading.Thread(target=a.run, args=(server.address,)) for a in agents]
        begin = time.monotonic()
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        seconds = time.monotonic() - begin
    if any(len(a.rows) != o.turns for a in agents):
        sys.exit("replay.py: an agent's conversation ended early")
    return agents, seconds


def mean(values):
    return sum(values) / len(values)


def report(o, with_cache, without, seconds):
    print("turn  prompt tokens  cached     first token, ms: cache on       off    times")
    for turn in range(o.turns):
        on, off = ([a.rows[turn] for a in agents] for agents in (with_cache, without))
        first_on, first_off = mean([r[2] for r in on]), mean([r[2] for r in off])
        tokens = (mean([r[i] for r in on]) for i in (0, 1))
        print("%4d  %13.0f  %6.0f  %25.1f  %8.1f  %7.1f" % (
            turn + 1, *tokens, first_on, first_off, first_off / first_on))
    prompts = sum(r[0] for a in with_cache for r in a.rows)
    cached = sum(r[1] for a in with_cache for r in a.rows)
    seen = sum(r[0] for a in with_cache for r in a.rows[:-1])
    print("reused %.1f %% of the %d prompt tokens that had been seen before, %.1f %% of all %d" % (
        100 * cached / seen, seen, 100 * cached / prompts, prompts))
    print("all of it: %.1f s, without the cache %.1f s (%.1f times)" % (*seconds, seconds[1] / seconds[0]))
    same = all(a.rows[i][3] == b.rows[i][3] for a, b in zip(with_cache, without) for i in range(o.turns))
    print("answers: %s" % ("the same" if same else "NOT THE SAME"))
    return same and 100 * cached / seen >= o.least


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model folder; without it a small one is made up")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--agents", type=int, default=1)
    parser.add_argument("--answer", type=int, default=48, help="tokens of each answer (default 48)")
    parser.add_argument("--least", type=float, default=95, help="per cent of what was seen before (default 95)")
    parser.add_argument("flags", nargs="*", help="after --: flags of shardd serve")
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = o.model or make_model(folder)
        with_cache, seconds_on = replay(o, model, "on")
        without, seconds_off = replay(o, model, "off")
    return 0 if report(o, with_cache, without, (seconds_on, seconds_off)) else 1


if __name__ == "__main__":
    sys.exit(main())
