#!/usr/bin/python3
"""House rules that a program can check; run by ctest as `house_rules`.

Checks every tracked or new .c/.cc/.h/.cu/.cuh/.py/.sh file of the project:
  - files at most 800 lines, C functions at most 70 lines, lines at most 120 columns;
  - banned calls (unbounded string functions, exit below main, alloca ...);
  - leftover markers and commented-out code;
  - includes that go against the arrows of docs/architecture.md, and tests of the kernels' contract that look inside a
    kernels library;
  - a string that has a length is printed by its length (counted_strings.py);
  - a header comment at the top of every C file, #pragma once in every header.
Prints one line per finding, `path:line: what and what to do`, and exits 1 if there was one.
`--self-test` proves that each rule can fail.
"""
import os
import re
import subprocess
import sys
import tempfile

import counted_strings

FILE_LINES_MAX = 800
FUNCTION_LINES_MAX = 70
COLUMNS_MAX = 120

# folder -> folders whose headers it may include. proto/step and proto/shardd are both "proto".
ARROWS = {
    "base": {"base"},
    "proto": {"proto", "base"},
    "kernels": {"kernels", "base"},
    "tp": {"tp", "kernels", "proto", "base"},
    "daemon": {"daemon", "proto", "base"},
    "launcher": {"launcher", "proto", "base"},
}
# Inside a folder: part -> parts of the same folder whose headers it may include, its own apart. What is not named is
# free: daemon/service and tp/tools join the others; files at the top of a folder are programs and what all parts use.
PART_ARROWS = {
    "kernels/shared": set(),
    "kernels/layout": {"kernels/shared"},
    "kernels/cpu": {"kernels/shared", "kernels/layout"},
    "tp/checkpoint": set(),
    "tp/synth": {"tp/checkpoint"},
    "tp/load": {"tp/checkpoint"},
    "tp/worker": {"tp/checkpoint", "tp/load"},
    "tp/bench": {"tp/checkpoint", "tp/load", "tp/worker"},
    "tp/quantize": {"tp/checkpoint", "tp/load"},
    "daemon/text": set(),
    "daemon/engine": set(),
    "daemon/rpc": set(),
    "launcher/options": set(),
    "launcher/serve": {"launcher/options"},
    "launcher/client": {"launcher/options"},
    "launcher/doctor": {"launcher/options"},
    "launcher/bench": {"launcher/options", "launcher/serve", "launcher/client"},
}
# Inside daemon/engine calls go down: a file may include headers of the layers before its own, its own header, state.h
# (data only) and engine.h (what the outside sees).
ENGINE_LAYERS = [["heap", "lookup", "pools", "round_cost", "stream"], ["prefix", "speculation"], ["state"],
                 ["disk", "inbox", "masks", "poke", "queue", "report", "timing", "wake"], ["registry", "reuse"],
                 ["draft", "sequence"], ["flight"], ["recovery", "scheduler"], ["engine", "submit"]]
ENGINE_LAYER_OF = {name: layer for layer, names in enumerate(ENGINE_LAYERS) for name in names}
FOLDERS = set(ARROWS) | {"tests"}
# These run on every kernels library and reach device memory through the contract: they see the inside of none.
CONTRACT_TESTS = ("tests/unit/kernels/", "tests/bench/kernels/", "tests/kernels/")
CONTRACT_HEADERS = ("kernels/kernels.h", "kernels/layout/layout.h", "kernels/shared/", "base/", "tests/unit/kernels/",
                    "tests/kernels/")

BANNED = {
    r"\bstrcpy\s*\(": "use snprintf or memcpy with a checked size",
    r"\bstrcat\s*\(": "use snprintf with a checked size",
    r"\bsprintf\s*\(": "use snprintf",
    r"\bvsprintf\s*\(": "use vsnprintf",
    r"\bgets\s*\(": "use a bounded read",
    r"\bato[ilf]\s*\(": "use strtoul/strtod and check the end and the range",
    r"\bstrtok\s*\(": "use strtok_r or parse by hand",
    r"\balloca\s*\(": "allocate with a checked size",
    r"\bsystem\s*\(": "use posix_spawn with an argument vector",
    r"\btmpnam\s*\(": "use mkstemp",
    r"\brand\s*\(\s*\)": "use a seeded generator of our own or getrandom",
}
MARKERS = re.compile(r"\b(" + "|".join(["FIX" + "ME", "X" * 3, "HA" + "CK", "TO" + "DO", "place" + "holder",
                                         "not " + "implemented"]) + r")\b")
COMMENTED_CODE = re.compile(r"^\s*//.*[;{}]\s*$")
KERNELS_CONTRACT = ("kernels/kernels.h", "kernels/layout/layout.h")  # what tp/ may see of kernels/
# What a formatter leaves where a comment did not fit behind a declaration.
LONE_COMMENT_END = re.compile(r"^[ \t]+\*/\s*$")
TORN_DECLARATION = re.compile(r"^[ \t]+(const )?(unsigned |struct |enum )?[a-z_0-9]+( \*)?\n[ \t]+\*?[a-z_0-9]+;", re.M)
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"')


def strip_code(text):
    """The same text with comments and string contents blanked, line structure kept."""
    out, i, n = [], 0, len(text)
    state = None
    while i < n:
        c, two = text[i], text[i:i + 2]
        if state is None:
            if two == "/*":
                state, out_add, step = "block", "  ", 2
            elif two == "//":
                state, out_add, step = "line", "  ", 2
            elif c in "\"'":
                state, out_add, step = c, c, 1
            else:
                out_add, step = c, 1
        elif state == "block":
            if two == "*/":
                state, out_add, step = None, "  ", 2
            else:
                out_add, step = (c if c == "\n" else " "), 1
        elif state == "line":
            if c == "\n":
                state = None
            out_add, step = (c if c == "\n" else " "), 1
        else:
            if c == "\\":
                out_add, step = "  ", 2
            elif c == state or c == "\n":
                state, out_add, step = None, c, 1
            else:
                out_add, step = " ", 1
        out.append(out_add)
        i += step
    return "".join(out)


def check_functions(path, code, add):
    """A function body starts with a line ending in '{' at column 0's statement and ends with '}' at column 0."""
    lines = code.split("\n")
    start = None
    depth_open = re.compile(r"^[A-Za-z_].*\)\s*\{\s*$")
    tail_open = re.compile(r"^\s+.*\)\s*\{\s*$")
    signature = None
    for number, line in enumerate(lines, 1):
        if start is None:
            if depth_open.match(line) and not line.startswith(("struct", "enum", "union", "typedef")) or \
                    depth_open.match(line) and "(" in line and not line.rstrip().endswith("= {"):
                start = number
            elif re.match(r"^[A-Za-z_].*\([^;{]*$", line) and not line.startswith("#"):
                signature = number
            elif signature and tail_open.match(line):
                start, signature = signature, None
            elif line and not line[0].isspace():
                signature = None
        elif line.startswith("}"):
            if number - start + 1 > FUNCTION_LINES_MAX:
                add(path, start, "function of %d lines: at most %d, split it by idea"
                    % (number - start + 1, FUNCTION_LINES_MAX))
            start = signature = None


def check_engine_include(path, target, number, add):
    name, other = (os.path.splitext(os.path.basename(p))[0] for p in (path, target))
    if name not in ENGINE_LAYER_OF:
        add(path, number, "daemon/engine/%s is in no layer: add it to ENGINE_LAYERS in tests/house_rules.py" % name)
    elif other not in (name, "state", "engine") and ENGINE_LAYER_OF.get(other, 99) >= ENGINE_LAYER_OF[name]:
        add(path, number, "daemon/engine/%s may not include \"%s\": calls go down, results come up (state.h)"
            % (name, target))


def check_includes(path, text, add):
    folder = path.split("/")[0]
    part = "/".join(path.split("/")[:2])
    for number, line in enumerate(text.split("\n"), 1):
        match = INCLUDE.match(line)
        if not match:
            continue
        target = match.group(1)
        top = target.split("/")[0]
        if folder in ARROWS and top in FOLDERS and top not in ARROWS[folder]:
            add(path, number, "%s/ may not include \"%s\" (arrows: docs/architecture.md)" % (folder, target))
        if folder == "tp" and target.startswith("kernels/") and target not in KERNELS_CONTRACT:
            add(path, number, "tp/ knows kernels through kernels.h only (and layout.h), not \"%s\"" % target)
        if path.startswith(CONTRACT_TESTS) and not target.startswith(CONTRACT_HEADERS):
            add(path, number, "runs on every kernels library: not \"%s\", which is the inside of one "
                "(tests/unit/kernels_cpu)" % target)
        target_part = "/".join(target.split("/")[:2])
        below = target.count("/") > 1  # in a part, and not a header at the top of the folder
        if part in PART_ARROWS and top == folder and below and target_part not in PART_ARROWS[part] | {part}:
            add(path, number, "%s may not include \"%s\" (arrows: docs/architecture.md)" % (part, target))
        if part == target_part == "daemon/engine":
            check_engine_include(path, target, number, add)


def check_c(path, text, add):
    if not text.lstrip().startswith("/*"):
        add(path, 1, "no header comment: say what the file is for, who calls it and who owns the memory")
    if path.endswith((".h", ".cuh")) and "#pragma once" not in text:
        add(path, 1, "header without #pragma once")
    code = strip_code(text)
    for number, line in enumerate(code.split("\n"), 1):
        for pattern, advice in BANNED.items():
            if re.search(pattern, line):
                add(path, number, "banned call %s: %s" % (re.search(pattern, line).group(0).strip("( "), advice))
        if re.search(r"\b_?exit\s*\(", line) and not path.endswith("main.c") and not path.startswith("tests/"):
            add(path, number, "exit below main: return an error")
    for number, line in enumerate(text.split("\n"), 1):
        if COMMENTED_CODE.match(line):
            add(path, number, "commented-out code: delete it")
        if LONE_COMMENT_END.match(line):
            add(path, number, "a comment's end alone on its line: put it behind the last word")
    for torn in TORN_DECLARATION.finditer(text):
        add(path, text.count("\n", 0, torn.start()) + 1, "torn declaration: put its comment above it")
    counted_strings.check(path, text, add)
    check_functions(path, code, add)
    check_includes(path, text, add)


def check_file(path, text, add):
    lines = text.split("\n")
    if len(lines) - 1 > FILE_LINES_MAX:
        add(path, FILE_LINES_MAX, "file of %d lines: at most %d, split it by idea" % (len(lines) - 1, FILE_LINES_MAX))
    for number, line in enumerate(lines, 1):
        if len(line) > COLUMNS_MAX:
            add(path, number, "line of %d columns: at most %d" % (len(line), COLUMNS_MAX))
        if MARKERS.search(line):
            add(path, number, "leftover marker '%s': finish it" % MARKERS.search(line).group(0))
    if path.endswith((".c", ".cc", ".h", ".cu", ".cuh")):
        check_c(path, text, add)


def files_of(root):
    """Tracked and new files; every file but build/ where there is no git (a source archive)."""
    try:
        listing = subprocess.run(["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard"], cwd=root,
                                 check=True, capture_output=True, text=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        listing = [os.path.relpath(os.path.join(folder, name), root) for folder, _, names in os.walk(root)
                   if not os.path.relpath(folder, root).startswith(("build", ".git")) for name in names]
    kinds = (".c", ".cc", ".h", ".cu", ".cuh", ".py", ".sh")
    return [f for f in listing if f.endswith(kinds) and os.path.isfile(os.path.join(root, f))]


def check_tree(root, files):
    findings = []
    for path in sorted(files):
        with open(os.path.join(root, path), encoding="utf-8") as f:
            check_file(path, f.read(), lambda p, n, what: findings.append("%s:%d: %s" % (p, n, what)))
    return findings


def self_test():
    bad = {
        "base/a.c": ("/* a */\n" + "int f(void) {\n" + "    g();\n" * 80 + "}\n", "function of"),
        "base/b.c": ("/* b */\n" + "\n" * 900, "file of"),
        "base/c.c": ("/* c */\nvoid f(void) {\n    strcpy(a, b);\n}\n", "banned call strcpy"),
        "base/d.c": ("/* d */\n#include \"daemon/x.h\"\n", "may not include"),
        "tp/e.c": ("/* e */\n#include \"kernels/cpu/private.h\"\n", "kernels.h only"),
        "tests/unit/kernels/n.c": ("/* n */\n#include \"kernels/cpu/internal.h\"\n", "every kernels library"),
        "base/f.c": ("int x;\n", "no header comment"),
        "base/g.h": ("/* g */\nint x;\n", "pragma once"),
        "base/h.c": ("/* h */\n/* " + "FIX" + "ME later */\n", "leftover marker"),
        "base/i.c": ("/* i */\n// x = y;\n", "commented-out"),
        "base/q.c": ("/* q\n */\nint x;\n", "a comment's end alone"),
        "base/r.h": ("/* r */\n#pragma once\nstruct s {\n    uint32_t\n            x; /* y */\n};\n", "torn"),
        "base/j.c": ("/* j */\nvoid f(void) {\n    exit(1);\n}\n", "exit below main"),
        "daemon/text/k.c": ("/* k */\n#include \"daemon/rpc/x.h\"\n", "may not include"),
        "tp/checkpoint/o.c": ("/* o */\n#include \"tp/load/x.h\"\n", "may not include"),
        "launcher/options/p.c": ("/* p */\n#include \"launcher/serve/x.h\"\n", "may not include"),
        "daemon/engine/flight.c": ("/* f */\n#include \"daemon/engine/recovery.h\"\n", "calls go down"),
        "daemon/engine/new.c": ("/* n */\n#include \"daemon/engine/state.h\"\n", "in no layer"),
        "base/l.c": ("/* l */\n/* " + "y" * 130 + " */\n", "columns"),
        "base/m.c": ("/* m */\nint f(int a,\n        int b) {\n" + "    g();\n" * 80 + "}\n", "function of"),
    }
    good = {"base/ok.c": ("/* ok */\nint f(void) {\n    return puts(\"strcpy(a, b)\");\n}\n", "")}
    failed = 0
    for path, (text, expected) in {**bad, **counted_strings.BAD, **good, **counted_strings.GOOD}.items():
        with tempfile.TemporaryDirectory() as root:
            os.makedirs(os.path.join(root, os.path.dirname(path)))
            with open(os.path.join(root, path), "w", encoding="utf-8") as f:
                f.write(text)
            found = check_tree(root, [path])
        right = any(expected in line for line in found) if expected else not found
        if not right:
            failed += 1
            print("self-test: %s: expected '%s', found %s" % (path, expected, found))
    print("house_rules self-test: %d rules shown to fail, %d wrong" % (len(bad) + len(counted_strings.BAD), failed))
    return 1 if failed else 0


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    files = files_of(root)
    findings = check_tree(root, files)
    for line in findings:
        print(line)
    print("house_rules: %d files, %d findings" % (len(files), len(findings)))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
