#!/usr/bin/env python3
"""Compares what ptxas made of each kernel of kernels/cuda with resources.tsv: registers, shared memory, spills.

usage: tests/cuda/resources.py [BUILD] [--update | --print | --self-test]

BUILD is the build folder (build/release). Nothing is compiled: the build kept what ptxas said beside each object
(kernels/cuda/keep_ptxas.sh). Shared memory is what a kernel declares; the emulation checks what a launch asks for.

Any toolkit and architecture: no kernel needs more than sm_86 gives, none spills that the table does not let spill.
The table's own toolkit and architectures: every number is the table's, and the kernels are.
--update writes the table from this build. Status 77 (skipped): nothing was built for CUDA here.
"""
import argparse
import collections
import glob
import os
import re
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
TABLE = os.path.join(HERE, "resources.tsv")
UPDATE = "if that is meant: tests/cuda/resources.py --update, and say why in the commit"
SKIPPED = 77
REGISTERS_MOST, SHARED_MOST = 255, 48 << 10  # of a thread; of a block, as far as a kernel may declare it (sm_86)
SPILL_LITTLE = 256  # bytes of a kernel that may spill, with a toolkit that is not the table's

Kernel = collections.namedtuple("Kernel", "registers shared spill_stores spill_loads")
HEADER = "arch\tkernel\tregisters\tshared\tspill stores\tspill loads"


def kernels_of(text):
    """{(architecture, mangled name): Kernel} of what `ptxas -v` says."""
    found, at, spills = {}, None, None
    for line in text.splitlines():
        entry = re.search(r"Compiling entry function '(\w+)' for '(sm_\w+)'", line)
        spilled = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line)
        used = re.search(r"Used (\d+) registers", line)
        if entry:
            at = (entry[2], entry[1])
        elif spilled:
            spills = int(spilled[1]), int(spilled[2])
        elif used and at:
            shared = re.search(r"(\d+) bytes smem", line)
            found[at] = Kernel(int(used[1]), int(shared[1]) if shared else 0, *spills)
            at = None
    return found


def readable(names):
    """{mangled: "gdn_rows_kernel<4u, true>"}."""
    names = sorted(set(names))
    said = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return {name: re.sub(r"^void |\([^()]*\)$", "", line) for name, line in zip(names, said.splitlines())}


def built(build):
    """(toolkit, {(architecture, name): Kernel}) of a build folder; toolkit None: it has nothing of CUDA."""
    folder = os.path.join(build, "kernels/cuda")
    if not os.path.exists(os.path.join(folder, "toolkit")):
        return None, {}
    with open(os.path.join(folder, "toolkit"), encoding="utf-8") as f:
        toolkit = f.read().strip()
    found = {}
    for source in sorted(glob.glob(os.path.join(ROOT, "kernels/cuda/*.cu"))):
        record = os.path.join(folder, "CMakeFiles/shardd_kernels_cuda.dir", os.path.basename(source) + ".o.ptxas")
        if not os.path.exists(record):
            sys.exit("resources: %s is not there: build shardd_kernels_cuda first" % record)
        with open(record, encoding="utf-8") as f:
            found.update(kernels_of(f.read()))
    names = readable(name for _, name in found)
    return toolkit, {(arch, names[name]): kernel for (arch, name), kernel in found.items()}


def read_table(lines):
    toolkit, table = None, {}
    for line in lines:
        said = re.match(r"# toolkit (\S+)", line)
        if said:
            toolkit = said[1]
        elif line.strip() and not line.startswith("#") and line.rstrip("\n") != HEADER:
            arch, name, *numbers = line.rstrip("\n").split("\t")
            table[arch, name] = Kernel(*map(int, numbers))
    return toolkit, table


def lines_of(toolkit, kernels):
    yield "# What ptxas makes of kernels/cuda, by tests/cuda/resources.py --update; ctest compares."
    yield "# toolkit %s" % toolkit
    yield HEADER
    for (arch, name), kernel in sorted(kernels.items(), key=lambda item: (item[0][1], item[0][0])):
        yield "\t".join([arch, name, *map(str, kernel)])


def limits(where, kernel, allowed):
    """What is wrong on any toolkit. allowed: bytes that it may spill, stores and loads each."""
    if kernel.registers > REGISTERS_MOST:
        yield "%s: %d registers, sm_86 has %d for a thread" % (where, kernel.registers, REGISTERS_MOST)
    if kernel.shared > SHARED_MOST:
        yield "%s: declares %d bytes of shared memory, a block of sm_86 has %d" % (where, kernel.shared, SHARED_MOST)
    if max(kernel.spill_stores - allowed[0], kernel.spill_loads - allowed[1]) > 0:
        yield "%s: spills %d bytes (loads %d), %s; give it registers (__launch_bounds__) or less to keep; %s" % (
            where, kernel.spill_stores, kernel.spill_loads,
            "the table has %d (%d)" % allowed if any(allowed) else "and should not", UPDATE)


def compare(toolkit, kernels, table_toolkit, table):
    """Sentences, one for each thing that is wrong."""
    same = toolkit == table_toolkit
    spillers = {name for (_, name), kernel in table.items() if kernel.spill_loads}
    both = {arch for arch, _ in table} & {arch for arch, _ in kernels}
    for (arch, name), kernel in sorted(kernels.items()):
        known = table.get((arch, name))
        where = "%s (%s)" % (name, arch)
        if same and known:
            allowed = known.spill_stores, known.spill_loads
        else:
            allowed = (SPILL_LITTLE, SPILL_LITTLE) if name in spillers else (0, 0)
        found = list(limits(where, kernel, allowed))
        yield from found
        if arch in both and not known:
            yield "%s: is not in the table; %s" % (where, UPDATE)
        elif same and known and kernel != known and not found:
            yield "%s: %s, in the table %s; %s" % (where, told(kernel), told(known), UPDATE)
    for arch, name in sorted(set(table) - set(kernels)):
        if arch in both:
            yield "%s (%s): is in the table, and is no longer built; %s" % (name, arch, UPDATE)


def told(kernel):
    return "%d registers, %d bytes of shared memory, spills %d (%d)" % kernel


SAID = """ptxas info    : Compiling entry function '_Z4leafILi3EEvPf' for 'sm_86'
ptxas info    : Function properties for _Z4leafILi3EEvPf
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem, 376 bytes cmem[0]
ptxas info    : Compiling entry function '_Z4rootv' for 'sm_86'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, 360 bytes cmem[0]
"""


def self_test():
    """Every rule is shown to fail where it should, and only there."""
    said = kernels_of(SAID)
    names = readable(name for _, name in said)
    good = {(arch, names[name]): kernel for (arch, name), kernel in said.items()}
    leaf, root = ("sm_86", "leaf<3>"), ("sm_86", "root")
    expected = {leaf: Kernel(40, 512, 4, 12), root: Kernel(8, 0, 0, 0)}
    wrong = [] if good == expected and read_table(lines_of("13.0", good)) == ("13.0", good) else [("parsed", good)]

    def judge(what, *sentences, toolkit="13.0", **changed):
        kernels = {**good, **changed.get("kernels", {})}
        for key in changed.get("without", ()):
            del kernels[key]
        found = list(compare(toolkit, kernels, "13.0", good))
        if len(found) != len(sentences) or not all(part in said for part, said in zip(sentences, found)):
            wrong.append((what, found))

    judge("the same")
    judge("a register more", "root (sm_86): 9 registers", kernels={root: Kernel(9, 0, 0, 0)})
    judge("... with another toolkit", kernels={root: Kernel(9, 0, 0, 0)}, toolkit="12.4")
    judge("a spill", "root (sm_86): spills 4", kernels={root: Kernel(8, 0, 4, 4)})
    judge("... with another toolkit", "root (sm_86): spills 4", kernels={root: Kernel(8, 0, 4, 4)}, toolkit="12.4")
    judge("a larger spill", "the table has 4 (12)", kernels={leaf: Kernel(40, 512, 8, 12)})
    judge("... with another toolkit", kernels={leaf: Kernel(40, 512, 8, 12)}, toolkit="12.4")
    judge("too large there", "spills 900", kernels={leaf: Kernel(40, 512, 900, 12)}, toolkit="12.4")
    judge("too many registers", "sm_86 has 255", kernels={root: Kernel(256, 0, 0, 0)}, toolkit="12.4")
    judge("too much memory", "declares 49153", kernels={root: Kernel(8, 49153, 0, 0)}, toolkit="12.4")
    judge("a new kernel", "new (sm_86): is not in the table", kernels={("sm_86", "new"): Kernel(8, 0, 0, 0)})
    judge("a kernel less", "root (sm_86): is in the table", without=[root])
    judge("another architecture", kernels={("sm_80", "root"): Kernel(30, 0, 0, 0)})
    for what, found in wrong:
        print("self-test: %s: %s" % (what, found))
    print("resources self-test: %d wrong" % len(wrong))
    return 1 if wrong else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", nargs="?", default=os.path.join(ROOT, "build/release"))
    parser.add_argument("--update", action="store_true", help="write the table from this build")
    parser.add_argument("--print", action="store_true", help="print this build's table")
    parser.add_argument("--self-test", action="store_true", help="the rules themselves, without a build")
    options = parser.parse_args()
    if options.self_test:
        return self_test()
    toolkit, kernels = built(options.build)
    if toolkit is None:
        print("skipped: %s has no kernels/cuda: where it was configured is no CUDA toolkit (nvcc)" % options.build)
        return SKIPPED
    if options.print or options.update:
        text = "".join(line + "\n" for line in lines_of(toolkit, kernels))
        with open(TABLE, "w", encoding="utf-8") if options.update else os.fdopen(os.dup(1), "w") as f:
            f.write(text)
        return 0
    with open(TABLE, encoding="utf-8") as f:
        table_toolkit, table = read_table(f)
    wrong = list(compare(toolkit, kernels, table_toolkit, table))
    for sentence in wrong:
        print(sentence)
    print("%d kernels of %s by CUDA %s (%s), at most %d registers, %d spill; %d wrong" % (
        len(kernels), ", ".join(sorted({arch for arch, _ in kernels})), toolkit,
        "the table's, every number compared" if toolkit == table_toolkit else
        "the table's is %s: limits and spills compared" % table_toolkit,
        max(kernel.registers for kernel in kernels.values()),
        sum(kernel.spill_loads > 0 for kernel in kernels.values()), len(wrong)))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
