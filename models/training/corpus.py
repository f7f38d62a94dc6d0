#!/usr/bin/env python3
"""Collects the English text that the bundled model learns from, out of a Debian system.

usage: corpus.py OUT.jsonl.xz

Sources, installed on the machine and free to use (the model card names those that are not of Debian main:
manual pages of google-cloud-cli, Apache-2.0, and Node.js documentation, MIT): the package descriptions (the
Translation-en lists that `apt-get -o Acquire::Languages=en update` fetches; APT_LISTS names another list
folder), the manual pages, the info manuals, the licences of /usr/share/common-licenses, README files and
Markdown of /usr/share/doc, and the docstrings of the Python packages in /usr/lib/python3*. The script itself
downloads nothing. Each line of the output is {"kind": ..., "name": ..., "text": ...}.
"""
import ast
import gzip
import hashlib
import json
import lzma
import os
import re
import subprocess
import sys
from pathlib import Path

DOC_BYTES = 300_000
TOTAL_BYTES = {"package": 40_000_000, "man": 14_000_000, "info": 5_000_000, "doc": 9_000_000, "docstring": 9_000_000,
               "licence": 400_000}


def packages():
    lists = Path(os.environ.get("APT_LISTS", "/var/lib/apt/lists"))
    listing = ""
    for path in sorted(lists.glob("*_main_i18n_Translation-en*")) or sorted(lists.glob("*_Packages*")):
        text = subprocess.run(["/usr/lib/apt/apt-helper", "cat-file", str(path)], capture_output=True, check=True)
        listing += text.stdout.decode("utf-8", "replace")
    seen = set()
    for entry in listing.split("\n\n"):
        name = re.search(r"^Package: (.*)$", entry, re.M)
        found = re.search(r"^Description(?:-en)?: (.*(?:\n .*)*)", entry, re.M)
        if not name or not found:
            continue
        lines = found.group(1).split("\n")
        body = "\n".join("" if line.strip() == "." else line[1:] for line in lines[1:])
        body = unwrap(body).strip()
        key = hashlib.sha256(body[:200].encode()).digest() if body else name.group(1)
        if key in seen:
            continue
        seen.add(key)
        yield name.group(1), lines[0].strip() + ("\n\n" + body if body else "")


def unwrap(text):
    """Joins the lines of a paragraph; lists and indented lines stay as they are."""
    out = []
    for line in text.split("\n"):
        plain = line and not line[0].isspace() and line[0] not in "*-+o|#" and out and out[-1]
        if plain and not out[-1][0].isspace():
            out[-1] += " " + line.strip()
        else:
            out.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(out))


def manual_page(source):
    out = []
    for line in source.split("\n"):
        if line.startswith((".\\\"", "'\\\"", ".ds", ".nr", ".de", ".ie", ".el", ".if", ".tr", ".ad", ".hy", "..")):
            continue
        heading = re.match(r"\.(SH|SS|Sh|Ss)\s+\"?(.*?)\"?$", line)
        if heading:
            out += ["", heading.group(2), ""]
        elif re.match(r"\.(PP|P|LP|Pp|sp|TP|IP|br|It|HP)", line):
            out.append("")
        elif re.match(r"\.(B|I|BR|BI|IR|RB|RI|IB|SM|SB|Nm|Fl|Ar|Pa|Cm|Nd|Em|Xr|Dq|Sq|Ql|Li|Va|Fn)\s", line):
            words = line.split(" ", 1)[1]
            glue = "" if line[1:3] in ("BR", "BI", "IR", "RB", "RI", "IB") else " "
            parts = re.findall(r'"([^"]*)"|(\S+)', words)
            out.append(glue.join(a or b for a, b in parts))
        elif line.startswith((".", "'")):
            continue
        else:
            out.append(line)
    text = "\n".join(out)
    text = re.sub(r"\\f(\[[^]]*\]|\(..|.)|\\s[-+]?\d|\\&|\\/|\\,|\\:|\\%|\\\||\\\^", "", text)
    text = re.sub(r"\\-|\\\(hy|\\\[hy\]", "-", text)
    for name, char in (("aq", "'"), ("cq", "'"), ("oq", "'"), ("lq", '"'), ("rq", '"'), ("dq", '"'), ("em", "-"),
                       ("en", "-"), ("bu", "*"), ("co", "(c)"), ("rs", "\\"), ("ti", "~"), ("ha", "^"), ("ga", "`")):
        text = text.replace("\\(" + name, char).replace("\\[" + name + "]", char)
    text = re.sub(r"\\e", r"\\", text)
    text = re.sub(r"\\\*\([A-Z\"<>'`]{2}|\\\(..|\\\[[^]]*\]|\\.", "", text)
    return unwrap(re.sub(r"[ \t]+", " ", text))


def files(folder, pattern):
    for path in sorted(Path(folder).rglob(pattern)):
        if path.is_file() and not path.is_symlink():
            yield path


def read(path):
    data = path.read_bytes()
    if path.suffix == ".gz":
        data = gzip.decompress(data)
    return data[:2_000_000].decode("utf-8", "ignore")


def manuals():
    for section in ("man1", "man7", "man8", "man5", "man2", "man3"):
        for path in files("/usr/share/man/" + section, "*.gz"):
            if path.stat().st_size > 700:
                yield path.name[:-3], manual_page(read(path))


def infos():
    for path in files("/usr/share/info", "*.gz"):
        text = re.sub(r"\x1f\nFile:.*|\x1f[\s\S]{0,200}?\n|\x00\x08\[[^\]]*\]|\*[Nn]ote\s+", "", read(path))
        yield path.name, unwrap(text)


def docs():
    # The last is the name of a file, in two parts so that nobody takes it for a note to ourselves.
    for pattern in ("README*", "*.md", "*.md.gz", "*.rst", "FAQ*", "*.txt.gz", "*.txt", "TO" "DO*"):
        for path in files("/usr/share/doc", pattern):
            if re.search(r"CHANGELOG|symbols|\.pdf|\.ps|google-cloud", str(path)) or path.stat().st_size < 600:
                continue
            yield str(path), unwrap(read(path))


def docstrings():
    for root in sorted(Path("/usr/lib").glob("python3*")):
        for path in files(root, "*.py"):
            try:
                tree = ast.parse(read(path))
            except (SyntaxError, ValueError, RecursionError):
                continue
            found = [ast.get_docstring(node) for node in ast.walk(tree)
                     if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
            text = "\n\n".join(unwrap(doc) for doc in found if doc and len(doc) > 60)
            if text:
                yield str(path), text


def licences():
    for path in files("/usr/share/common-licenses", "*"):
        yield path.name, unwrap(read(path))


def main():
    makers = {"package": packages, "licence": licences, "info": infos, "doc": docs, "man": manuals,
              "docstring": docstrings}
    seen = set()
    with lzma.open(sys.argv[1], "wt", encoding="utf-8", preset=3) as out:
        for kind, maker in makers.items():
            total = count = 0
            for name, text in maker():
                text = re.sub(r"[^\x09\x0a\x20-\x7e]", "", text).strip()[:DOC_BYTES]
                letters = sum(c.isalpha() or c == " " for c in text)
                key = hashlib.sha256(text[:400].encode()).digest()
                if len(text) < 40 or letters < 0.7 * len(text) or key in seen:
                    continue
                seen.add(key)
                out.write(json.dumps(dict(kind=kind, name=name, text=text)) + "\n")
                total, count = total + len(text), count + 1
                if total > TOTAL_BYTES[kind]:
                    break
            print(f"{kind}: {count} texts, {total / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
