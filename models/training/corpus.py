#!/usr/bin/env python3
"""Collects the English text that the bundled model learns from, out of packages of Debian's main section.

usage: corpus.py WORK OUT.jsonl.xz

Needs apt with Debian 12's sources and no rights. Fetches the package descriptions and the packages of SOURCES into
WORK, unpacks them there and installs nothing, so that every machine gets the same text. OUT begins with the
versions; each further line is {"kind": ..., "name": ..., "text": ...}.
"""
import ast
import gzip
import hashlib
import html.parser
import json
import lzma
import re
import subprocess
import sys
from pathlib import Path

# package: which of its files, as a pattern of their paths
SOURCES = {
    "apache2-doc": r"/manual/.*\.html\.en$|/manual/.*en/.*\.html$",
    "apt": r"/man/man\d/",
    "aptitude-doc-en": r"\.html$",
    "bash": r"/man/man1/",
    "bash-doc": r"/info/",
    "coreutils": r"/man/man1/|/info/",
    "debhelper": r"/man/man\d/",
    "debian-faq": r"\.en\.html$|faq.*\.txt",
    "debian-handbook": r"/en-US/.*\.html$",
    "debian-policy": r"\.html/.*\.html$",
    "debian-reference-en": r"\.en\.html$",
    "developers-reference": r"\.txt|/[a-z-]*\.html$",
    "devscripts": r"/man/man1/",
    "diffutils": r"/info/",
    "dpkg-dev": r"/man/man\d/",
    "findutils": r"/info/",
    "fortunes": r"/games/fortunes/[a-z-]*$",
    "fortunes-min": r"/games/fortunes/[a-z-]*$",
    "gawk": r"/man/man1/",
    "gimp-help-en": r"/en/.*\.html$",
    "git-doc": r"/(howto|RelNotes|technical)/.*|/user-manual\.html$|/giteveryday\.html$",
    "git-man": r"/man/man\d/",
    "gnome-user-docs": r"/help/C/.*\.page$",
    "grep": r"/info/",
    "installation-guide-amd64": r"/en/.*\.html$",
    "jargon-text": r"jargon",
    "libpython3.11-minimal": r"\.py$",
    "libpython3.11-stdlib": r"\.py$",
    "live-manual-txt": r"\.en\.txt",
    "manpages": r"/man/man\d/",
    "manpages-dev": r"/man/man2/|/man/man3/",
    "perl-doc": r"\.pod$|/man/man1/",
    "postgresql-doc-15": r"\.html$",
    "procps": r"/man/man\d/",
    "sed": r"/info/",
    "subversion": r"/man/man1/",
    "systemd": r"/man/man\d/",
    "tar": r"/man/man\d/",
    "util-linux": r"/man/man\d/",
    "vim-runtime": r"/doc/[a-z_0-9]*\.txt$",
}
TEXT_BYTES, PACKAGE_BYTES = 300_000, 5_000_000


def fetch(work):
    """The descriptions and the unpacked packages, below work. Returns the options that make apt use work."""
    lists, debs = work / "lists", work / "debs"
    for folder in (lists / "partial", debs, work / "files"):
        folder.mkdir(parents=True, exist_ok=True)
    options = ["-o", f"Dir::State::Lists={lists}", "-o", "Acquire::Languages=en", "-o", "APT::Sandbox::User=",
               "-o", f"Dir::Cache={work}"]
    subprocess.run(["apt-get", *options, "-qq", "update"], check=True)
    for package in SOURCES:
        if not list(debs.glob(package + "_*.deb")):
            subprocess.run(["apt-get", *options, "-qq", "download", package], cwd=debs, check=True)
        if not (work / "files" / package).exists():
            (deb,) = debs.glob(package + "_*.deb")
            subprocess.run(["dpkg-deb", "-x", deb, work / "files" / package], check=True)
    return lists


def descriptions(lists):
    listing = ""
    for path in sorted(lists.glob("*_dists_bookworm_main_i18n_Translation-en*")):
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


class Page(html.parser.HTMLParser):
    """The text of an HTML or Mallard page: a paragraph for each block, without scripts and navigation."""
    BLOCKS = set("p div li dt dd h1 h2 h3 h4 h5 h6 title tr table section item pre br screen code".split())
    SILENT = {"script", "style", "nav", "head", "info"}

    def __init__(self):
        super().__init__()
        self.parts, self.silent = [], []

    def handle_starttag(self, tag, attrs):
        if tag in self.SILENT or "nav" in (dict(attrs).get("class") or ""):
            self.silent.append(tag)
        elif self.silent and tag == self.silent[-1]:
            self.silent.append(tag)
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag):
        if self.silent and self.silent[-1] == tag:
            self.silent.pop()
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data):
        if not self.silent:
            self.parts.append(data)


def page(source):
    parser = Page()
    parser.feed(source)
    blocks = (re.sub(r"\s+", " ", block).strip() for block in re.split(r"\n\n+", "".join(parser.parts)))
    return "\n\n".join(block for block in blocks if len(block) > 40 or block.endswith((".", ":")))


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


def info(source):
    return unwrap(re.sub(r"\x1f\nFile:.*|\x1f[\s\S]{0,200}?\n|\x00\x08\[[^\]]*\]|\*[Nn]ote\s+", "", source))


def pod(source):
    source = re.sub(r"^=(?:head\d|item)\s+|^=\w+.*$", "", source, flags=re.M)
    for _ in range(3):
        source = re.sub(r"[A-Z]<<?\s?([^<>]*?)\s?>?>", r"\1", source)
    return unwrap(source)


def docstrings(source):
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return ""
    found = [ast.get_docstring(node) for node in ast.walk(tree)
             if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]
    return "\n\n".join(unwrap(doc) for doc in found if doc and len(doc) > 60)


def fortunes(source):
    return "\n\n".join(part.strip() for part in source.split("\n%\n"))


def text_of(path):
    data = path.read_bytes()
    name = path.name
    if name.endswith(".gz"):
        data, name = gzip.decompress(data), name[:-3]
    source = data[:2_000_000].decode("utf-8", "ignore")
    if name.endswith((".html", ".html.en", ".page")):
        return page(source)
    if "/man/man" in str(path):
        return manual_page(source)
    if "/games/fortunes/" in str(path):
        return fortunes(source)
    for suffix, maker in ((".py", docstrings), (".pod", pod), (".info", info)):
        if suffix in name:
            return maker(source)
    return unwrap(source)


def package_texts(work, package):
    for path in sorted((work / "files" / package).rglob("*")):
        if path.is_file() and not path.is_symlink() and re.search(SOURCES[package], str(path)):
            yield path.name, text_of(path)


def main():
    work, seen = Path(sys.argv[1]), set()
    lists = fetch(work.resolve())
    versions = sorted(path.name for path in (work / "debs").glob("*.deb"))
    with lzma.open(sys.argv[2], "wt", encoding="utf-8", preset=6) as out:
        out.write(json.dumps(dict(kind="versions", name="versions", text="\n".join(versions))) + "\n")
        for package in ["descriptions", *SOURCES]:
            total = count = 0
            maker = descriptions(lists) if package == "descriptions" else package_texts(work, package)
            kind = "package" if package == "descriptions" else package
            for name, text in maker:
                text = re.sub(r"[^\x09\x0a\x20-\x7e]", "", text).strip()[:TEXT_BYTES]
                letters = sum(c.isalpha() or c == " " for c in text)
                key = hashlib.sha256(text[:400].encode()).digest()
                if len(text) < 40 or letters < 0.7 * len(text) or key in seen:
                    continue
                seen.add(key)
                out.write(json.dumps(dict(kind=kind, name=name, text=text)) + "\n")
                total, count = total + len(text), count + 1
                if total > PACKAGE_BYTES and package != "descriptions":
                    break
            print(f"{package}: {count} texts, {total / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
