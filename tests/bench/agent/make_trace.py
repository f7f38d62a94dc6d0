#!/usr/bin/python3
"""Writes trace.jsonl, which replay.py replays: an agent that reads a project and answers questions of it.

    tests/bench/agent/make_trace.py > tests/bench/agent/trace.jsonl

A line is a turn: the messages that are new in it. The first has the instructions, the tools and the task; each after it
has what the assistant said (reasoning, and a tool call) and what the tool answered, which is text of this project's own
pages as they were when the trace was made. Run again it makes another trace, and figures cannot be compared any more:
that is why the trace itself is kept.
"""
import json
import os

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
TURNS = 20
RESULT_CHARACTERS = 5200  # of a tool's answer; every third is a short one
PAGES = ["docs/architecture.md", "docs/configuration.md", "docs/cli.md", "README.md", "docs/decisions.md"]

SYSTEM = """You are an engineer who looks after a server of language models. You answer questions about it by reading
its pages with the tools that you have, a piece at a time, and you quote what you found with the file and the line.
Before each call you think about what is still missing. When a page does not say what you need you look at the next
one. You do not guess."""

TASK = """One of our users says that his streams paused for two seconds last night, and that their text was the same as
before. Find out from the pages of the project which parts of the server can make that happen, what is written to the
log when they do, and which settings change how long it takes. Read the pages from the first to the last: others will
ask more about them later."""


def tool(name, about, **parameters):
    properties = {k: {"type": t, "description": d} for k, (t, d) in parameters.items()}
    return {"type": "function", "function": {"name": name, "description": about, "parameters": {
        "type": "object", "properties": properties, "required": list(properties)}}}


TOOLS = [
    tool("read_file", "Returns a part of a file of the project.", path=("string", "from the project's root"),
         first_line=("integer", "counted from 1"), n_lines=("integer", "how many lines, 200 at most")),
    tool("search", "Lists the lines of all pages that have these words.", words=("string", "one or more words")),
]


def pieces():
    """Pieces of the pages, one after another, each of whole lines: (path, first line, lines)."""
    for path in PAGES:
        with open(os.path.join(ROOT, path), encoding="utf-8") as f:
            lines = f.read().splitlines()
        first, size, taken = 0, 0, []
        for i, line in enumerate(lines):
            taken.append(line)
            size += len(line) + 1
            if size >= RESULT_CHARACTERS:
                yield path, first + 1, taken
                first, size, taken = i + 1, 0, []
        if taken:
            yield path, first + 1, taken


def call(turn, name, arguments):
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "call_%d" % turn, "name": name,
                                                               "arguments": arguments}]}


def main():
    print(json.dumps({"tools": TOOLS, "messages": [{"role": "system", "content": SYSTEM},
                                                   {"role": "user", "content": TASK}]}))
    source = pieces()
    for turn in range(1, TURNS):
        path, first, lines = next(source)
        said = call(turn, "read_file", {"path": path, "first_line": first, "n_lines": len(lines)})
        said["reasoning"] = ("What I have so far does not say who notices it first. The next piece of %s begins at "
                             "line %d; it may name the limits, or at least the process that watches." % (path, first))
        if turn % 3 == 0:
            lines = lines[: max(1, len(lines) // 5)] + ["... (cut)"]
        result = "\n".join("%4d  %s" % (first + i, line) for i, line in enumerate(lines))
        print(json.dumps({"messages": [said, {"role": "tool", "content": result}]}))


if __name__ == "__main__":
    main()
