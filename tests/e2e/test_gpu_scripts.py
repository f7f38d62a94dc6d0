"""tests/gpu/bench, profile and check's sanitizer, which need a card: what they make of what their tools say."""
import json
import os
import re
import stat
import subprocess
import sys

import pytest

from shardd_client import BIN, PATIENCE, shardd

GPU = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "gpu")

# The worker in the scripts' build: the emulated one's record of a small model, once for each test asked for.
WORKER = """#!{python}
import itertools, json, sys
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
numbers = lambda name, other: [int(n) for n in flags.get(name, other).split(",")]
told = json.load(open({record!r}))
sample = {{(t["kind"], t["drafts"] > 0): t for t in told["tests"]}}
asked = [("prompt", n, 0, 1, 0) for n in numbers("--prompt", "512") if n]
asked += [("decode", n, *more) for n in numbers("--decode", "128") if n
          for more in itertools.product(numbers("--depth", "0"), numbers("--batch", "1"), numbers("--drafts", "0"))]
told["tests"] = [dict(sample[k, g > 0], tokens=n, depth=d, batch=b, drafts=g) for k, n, d, b, g in asked]
for t in told["tests"]:
    t.setdefault("memory_bytes_per_second", 1e9)
    t.setdefault("part_of_memory", 0.5)
json.dump(told, open(flags["--json"], "w"))
"""

# Runs what it is given, if that writes JSON, and says what its environment says.
NCU = """#!{python}
import os, subprocess, sys
if "--json" in sys.argv:
    at = next(i for i, word in enumerate(sys.argv) if "shardd-worker" in word)
    command = [word for word in sys.argv[at:] if word != "--enforce-eager"]
    subprocess.run(command, check=True)
if os.environ.get("NCU_REFUSES"):
    print("==ERROR== ERR_NVGPUCTRPERM - The user does not have permission to access NVIDIA GPU Performance Counters")
    sys.exit(1)
metrics = sys.argv[sys.argv.index("--metrics") + 1].split(",")
print("==PROF== Connected to process 1")
print(",".join('"%s"' % c for c in ["ID", "Kernel Name", *metrics]))
print(",".join('"%s"' % c for c in ["", "", *["unit"] * len(metrics)]))
n = 0
for step in range(12 if "--drafts" in sys.argv else 14):
    for name, value in (("begin_kernel(begin_args)", "1,000"), ("void stream_kernel<(unsigned int)4, (cut)1>(a)", "50"),
                        ("void stream_kernel<(unsigned int)4, (cut)1>(a)", "150"), ("end_kernel(end_args)", "0"),
                        ("words_kernel(words_args)", "7")):
        print(",".join('"%s"' % c for c in [n, name, *[value] * len(metrics)]))
        n += 1
"""

# Finds something with the tool that its environment names.
SANITIZER = """#!{python}
import os, sys
sys.exit(99 if sys.argv[sys.argv.index("--tool") + 1] == os.environ.get("SANITIZER_FINDS") else 0)
"""


def program(path, text):
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    (folder / "bin").mkdir()
    (folder / "tools").mkdir()
    model, record = str(folder / "tiny"), str(folder / "record.json")
    assert shardd("synth", model, "--config", "tiny", "--weights", "int4", "--config-only").returncode == 0
    subprocess.run([os.path.join(BIN, "shardd-worker-cuda-emu"), "bench", "--model", model, "--load-format", "dummy",
                    "--prompt", "4", "--decode", "2", "--drafts", "0,1", "--acceptance", "1", "--mtp", "on", "--repeat",
                    "1", "--max-num-batched-tokens", "4",
                    "--speed-memory", "0", "--json", record], check=True, timeout=300 * PATIENCE)
    os.symlink(os.path.join(BIN, "shardd-checkpoint"), folder / "bin" / "shardd-checkpoint")
    program(folder / "bin" / "shardd-worker-cuda", WORKER.format(python=sys.executable, record=record))
    program(folder / "tools" / "ncu", NCU.format(python=sys.executable))
    program(folder / "tools" / "compute-sanitizer", SANITIZER.format(python=sys.executable))
    return folder


def run(script, build, *flags, ncu=True, **environment):
    path = "%s:%s" % (build / "tools", os.environ["PATH"]) if ncu else "/usr/bin:/bin"
    done = subprocess.run([sys.executable, os.path.join(GPU, script), str(build), "--log", str(build / "log"), *flags],
                          capture_output=True, text=True, timeout=300 * PATIENCE, check=False,
                          env={**os.environ, "PATH": path, **environment})
    return done.returncode, done.stdout + done.stderr


@pytest.mark.emulated
def test_bench_has_a_row_for_every_aim(build):
    status, said = run("bench", build)
    assert status == 0, said
    for what in ("decode, 1 at 1k", "decode, 8 at 1k", "decode, 16 at 1k", "decode, 32 at 1k", "decode, 64 at 1k",
                 "decode, 1 at 8k", "decode, 1 at 32k", "prompt of 2k", "prompt of 8k", "a token moves"):
        assert len(re.findall(r"^  %s\b" % what, said, re.M)) == 1, said
    for batch in (1, 4, 8, 16):
        assert len(re.findall(r"^  1\+3, %-2d at 1k( +[\d.]+){6}" % batch, said, re.M)) == 2, said
    parts = ["decode", "deep", "prompt", "drafts", "moved"]
    assert re.findall(r"^(\w+) +ok", said, re.M) == parts
    told = json.loads((build / "log" / "bench.json").read_text())
    assert told["parts"] == {part: "ok" for part in parts}
    for rounds in told["drafts"], told["drafts_of_some_ids"]:
        assert [t["batch"] for t in rounds] == [1, 4, 8, 16] and rounds[0]["tokens_per_round"] == 2
    assert told["moved_bytes_per_token"] == 2 * (1000 + 50 + 150)
    assert len(told["tokens_per_second"]) == 5 + 2 + 2


@pytest.mark.emulated
def test_bench2_compares_with_one_gpu(build):
    status, said = run("bench2", build)
    assert status == 0, said
    rows = re.findall(r"^  (?:decode, \d+ at 1k(?:, 1\+3)?|prompt of [28]k) +[\d.]+ +[\d.]+ +1\.00 ", said, re.M)
    assert len(rows) == 4 + 2 + 8 + 3, said
    assert re.findall(r"^(\w+) +ok", said, re.M) == ["decode", "prompt", "drafts", "bf16"]
    assert len(json.loads((build / "log" / "bench2.json").read_text())) == 4 + 2 + 8 + 3


@pytest.mark.emulated
@pytest.mark.skipif(os.path.exists("/usr/local/cuda/bin/ncu"), reason="the toolkit here has ncu")
def test_without_ncu(build):
    status, said = run("bench", build, "--only", "moved", ncu=False)
    assert status == 0 and re.search(r"moved +skipped .*not on this machine", said), said
    status, said = run("profile", build, ncu=False)
    assert status == 1 and "not on this machine" in said


@pytest.mark.emulated
def test_without_permission(build):
    status, said = run("bench", build, "--only", "moved", NCU_REFUSES="1")
    assert status == 0 and re.search(r"moved +skipped .*not permitted", said), said
    status, said = run("profile", build, NCU_REFUSES="1")
    assert status == 1 and "not permitted" in said


@pytest.mark.emulated
def test_profile_sums_by_kernel(build):
    status, said = run("profile", build)
    assert status == 0, said
    rows = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+) % .* (\S.*kernel\S*.*)$", said, re.M)
    assert rows == [("1", "1.0", "83.3", "begin_kernel"), ("2", "0.2", "16.7", "stream_kernel<4, 1>"),
                    ("1", "0.0", "0.0", "end_kernel")] * 5, said
    assert "125 %" in said  # of time-weighted 50 and 150: (50 * 50 + 150 * 150) / 200


@pytest.mark.emulated
def test_check_tells_what_a_sanitizer_finds(build):
    def check(**environment):
        environment["PATH"] = "%s:%s" % (build / "tools", os.environ["PATH"])
        done = subprocess.run([sys.executable, os.path.join(GPU, "check"), str(build), "--only", "sanitizer"],
                              capture_output=True, text=True, timeout=300 * PATIENCE, check=False,
                              env={**os.environ, **environment})
        return done.returncode, done.stdout + done.stderr

    status, said = check()
    assert status == 0 and re.search(r"^sanitizer +ok .* 8 programs; seconds: ", said, re.M), said
    status, said = check(SANITIZER_FINDS="racecheck")
    assert status == 1 and re.search(r"^sanitizer +FAILED .* 2 of 8: ", said, re.M), said
