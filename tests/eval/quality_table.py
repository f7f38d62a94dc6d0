#!/usr/bin/python3
"""What quantising costs: accuracy per skill and KL of models/shardd-tiny in several widths.

usage: quality_table.py [--only NAME] [--activations int8|bf16|float]

Quantises the model as each row of CASES says, compares it with the original over the held-out prompts and their
replies (`shardd quantize --eval`), serves it and judges its replies to the held-out prompts (shardd_eval.py). The
binaries are those of SHARDD_BIN. --activations: KL and the served model are those of such activations; without it KL
is that of float ones, and what is served has INT8. docs/quality.md holds its output; tests/e2e/test_quantize.py
compares.
"""
import argparse
import json
import os
import re
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, HERE)

import shardd_eval  # noqa: E402
from shardd_client import shardd  # noqa: E402

CALIBRATION = os.path.join(ROOT, "tests/golden/quant_output/calibration.jsonl")
QUALITY = os.path.join(ROOT, "docs/quality.md")
CALIBRATED = ("--calibration", CALIBRATION)
HEAD8 = ("--lm-head", "int8", "--mtp", "int8")
HEAD4 = ("--lm-head", "int4", "--mtp", "int4")
CASES = {
    "BF16": None,
    "INT8 g128": ("--weights", "int8"),
    "INT8 g128, head INT8": ("--weights", "int8", *HEAD8),
    "INT4 g32": ("--group-size", "32"),
    "INT4 g32, calibrated": ("--group-size", "32", *CALIBRATED),
    "INT4 g128": (),
    "INT4 g128, asymmetric": ("--asymmetric",),
    "INT4 g128, calibrated": CALIBRATED,
    "INT4 g128, calibrated, head INT8": (*HEAD8, *CALIBRATED),
    "INT4 g128, calibrated, head INT4": (*HEAD4, *CALIBRATED),
}
SKILLS = ("arithmetic", "recall", "sort", "reverse", "copy", "tool")
COLUMNS = ("weights", "MB", "KL", "same token %", "all %") + SKILLS


def skill_of(record):
    return record["group"].split(",")[0]


def sequences(records, path):
    """The records' prompts with their recorded replies, for --eval."""
    with open(path, "w", encoding="utf-8") as f:
        for r in records:
            f.write(json.dumps({"prompt_ids": r["prompt_ids"], "reply_ids": r["reply_ids"]}) + "\n")


def quantise(flags, target, records):
    """The report of `shardd quantize --eval`."""
    folder = os.path.dirname(target)
    evaluation, report = os.path.join(folder, "eval.jsonl"), os.path.join(folder, "report.json")
    sequences(records, evaluation)
    done = shardd("quantize", shardd_eval.MODEL, target, *flags, "--eval", evaluation, "--report", report, timeout=900)
    if done.returncode != 0:
        raise RuntimeError("shardd quantize: %s%s" % (done.stdout, done.stderr))
    with open(report, encoding="utf-8") as f:
        return json.load(f)


def percent(records, rights, skill=None):
    found = [good for r, good in zip(records, rights) if skill in (None, skill_of(r))]
    return 100 * sum(found) / len(found)


def measure(name, records, activations=None):
    """One row: {column: number}."""
    flags = CASES[name]
    more = ("--activations", activations) if activations else ()
    with tempfile.TemporaryDirectory(prefix="shardd-quality-") as folder:
        model, report = shardd_eval.MODEL, {}
        if flags is not None:
            model = os.path.join(folder, "model")
            report = quantise((*flags, *more), model, records)
        size = os.path.getsize(os.path.join(model, "model.safetensors"))
        rights = shardd_eval.serve_and_ask(model, 1, records, activations=activations or "int8").right
    row = {"weights": name, "MB": size / 1e6, "KL": report.get("kl", 0), "same token %": 100 * report.get("top_1", 1),
           "all %": percent(records, rights)}
    row.update((skill, percent(records, rights, skill)) for skill in SKILLS)
    return row


def show(row):
    return "| %s | %.1f | %.4f | %.1f | %.1f | %s |" % (
        row["weights"], row["MB"], row["KL"], row["same token %"], row["all %"],
        " | ".join("%.0f" % row[skill] for skill in SKILLS))


def written():
    """{name: row} of docs/quality.md."""
    rows = {}
    with open(QUALITY, encoding="utf-8") as f:
        for line in f:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            if len(cells) == len(COLUMNS) and re.fullmatch(r"[\d.]+", cells[1]):
                rows[cells[0]] = dict(zip(COLUMNS, [cells[0]] + [float(cell) for cell in cells[1:]]))
    return rows


def main():
    parser = argparse.ArgumentParser(description="Makes the table of docs/quality.md, see the top of this file.")
    parser.add_argument("--only", action="append", choices=list(CASES))
    parser.add_argument("--activations", choices=("int8", "bf16", "float"))
    args = parser.parse_args()
    records = shardd_eval.load(shardd_eval.PROMPTS)
    print("| " + " | ".join(COLUMNS) + " |\n|---" + "|---" * (len(COLUMNS) - 1) + "|")
    for name in args.only or CASES:
        print(show(measure(name, records, args.activations)), flush=True)


if __name__ == "__main__":
    sys.exit(main() or 0)
