"""counted_strings.py - a part of house_rules.py: a string that has a length is printed by its length.

What a client or a file gave us (struct json_pull's string, the data of a protobuf bytes field or a GGUF string) has a
length and no NUL at its end; "%s" and "%.64s" read past it, into what other clients sent. Two rules:
  - in files that see such strings (COUNTED_HEADERS) "%.<digits>s" is not used, but for the files of TERMINATED;
  - nowhere is a member that is counted (COUNTED_MEMBERS) the argument of a %s without a counted length, "%.*s".
"""
import re

COUNTED_HEADERS = ("base/json_pull.h", "base/gguf.h", ".pb-c.h", "daemon/text/buffer.h", "daemon/service/message.h",
                   "tp/checkpoint/safetensors_file.h")
COUNTED_MEMBERS = {"string", "data"}
# Files that see counted strings and print others, which end with NUL, cut at a width.
TERMINATED = {
    "base/gguf_files.c": "paths and names of folder entries",
    "launcher/client/request.c": "arguments of the command line",
    "launcher/serve/serve.c": "the model's name and address as the launcher wrote them",
    "tp/checkpoint/checkpoint.c": "names of tensors that the planner wrote",
    "tp/quantize/sequences.c": "the name of a file",
}
WIDTH = re.compile(r"%[-+ #0]*\d*\.\d+s")
CONVERSION = re.compile(r"%(?:%|[-+ #0]*(\*|\d+)?(?:\.(\*|\d+))?(?:hh|h|ll|l|z|j|t|L)?([a-zA-Z]))")
CALL = re.compile(r"\b[A-Za-z_]\w*\s*\(")
LITERAL = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
MEMBER = re.compile(r"(?:->|\.)\s*(\w+)\s*$")


def arguments_of(text, at):
    """The arguments of the call whose '(' is text[at - 1], as (offset, text); None where it does not end."""
    found, begin, depth, i = [], at, 0, at
    while i < len(text):
        c = text[i]
        if c == '"' or c == "'":
            i += 1
            while i < len(text) and text[i] != c:
                i += 2 if text[i] == "\\" else 1
        elif c in "([{":
            depth += 1
        elif c in ")]}" and depth > 0:
            depth -= 1
        elif c == ")":
            return found + [(begin, text[begin:i])]
        elif c == "," and depth == 0:
            found.append((begin, text[begin:i]))
            begin = i + 1
        i += 1
    return None


def format_of(argument):
    """The text of the literals that stand side by side; a macro between them is some conversion of a number."""
    out, end = "", None
    for literal in LITERAL.finditer(argument):
        out += "u" if end is not None and argument[end:literal.start()].strip() else ""
        out += literal.group(1)
        end = literal.end()
    return out


def printed(text):
    """(offset, argument) of every %s without a counted length in the formats of text."""
    for call in CALL.finditer(text):
        arguments = arguments_of(text, call.end())
        for index, (_, argument) in enumerate(arguments or []):
            if not argument.lstrip().startswith('"'):
                continue
            values = arguments[index + 1:]
            for width, precision, kind in CONVERSION.findall(format_of(argument)):
                for star in (width, precision):
                    values = values[1:] if star == "*" else values
                if kind and values:
                    if kind == "s" and precision != "*":
                        yield values[0]
                    values = values[1:]
            break


def check(path, text, add):
    """Called by house_rules.py for every C file; add(path, line, what)."""
    sees = any(re.search(r'#\s*include\s+"[^"]*%s"' % re.escape(header), text) for header in COUNTED_HEADERS)
    if sees and path not in TERMINATED and not path.startswith("tests/"):
        for number, line in enumerate(text.split("\n"), 1):
            if WIDTH.search(line):
                add(path, number, "%.<digits>s where strings have a length: print them with %.*s and that length")
    for offset, argument in printed(text):
        member = MEMBER.search(argument)
        if member and member.group(1) in COUNTED_MEMBERS and not path.startswith("tests/"):
            add(path, text.count("\n", 0, offset) + 1 + len(argument) - len(argument.lstrip("\n")),
                "%%s of '%s', which has a length and no end: print it with %%.*s and that length" % argument.strip())


BAD = {
    "base/n.c": ('/* n */\n#include "base/json_pull.h"\nvoid f(void) {\n    say("%.64s", name);\n}\n', "%.<digits>s"),
    "daemon/text/o.c": ('/* o */\nvoid f(void) {\n    say(e, "%*d %.*s: \\"%s\\"", 1, 2, n, t, p->string);\n}\n',
                        "'p->string'"),
    "tp/p.c": ('/* p */\nvoid f(void) {\n    say("%s" "%.9s%%",\n        (a, b.data), g(x)[1].data);\n}\n', "[1].data"),
    "tp/q.c": ('/* q */\nvoid f(void) {\n    say("a%" PRIu64 "%.9s",\n        1, (const char *)name.data);\n}\n',
               "name.data'"),
}
GOOD = {
    "tp/ok.c": ('/* ok */\n#include "base/json_pull.h"\n'
                'void f(void) {\n    say("%.*s %s", n, p->string, p->name);\n}\n', ""),
}
