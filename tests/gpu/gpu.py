"""gpu.py - what check, check2, bench, bench2 and profile share: where the build is, how a program of it is run, and a
service of it."""
import csv
import json
import os
import re
import shutil
import subprocess
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
MODEL = os.path.join(ROOT, "models/shardd-tiny")
PROMPTS = os.path.join(ROOT, "tests/eval/prompts.jsonl")
START_SECONDS = 120


class Failed(Exception):
    pass


class Skipped(Exception):
    pass


class Build:
    def __init__(self, folder):
        self.folder = os.path.abspath(folder)
        self.bin = os.path.join(self.folder, "bin")

    def program(self, name):
        path = os.path.join(self.bin, name)
        if not os.path.exists(path):
            raise Failed("%s is not built" % path)
        return path

    def programs(self, pattern):
        return sorted(name for name in os.listdir(self.bin) if re.fullmatch(pattern, name))

    def run(self, command, seconds, env=None):
        """The finished process, or what its last lines say."""
        try:
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=seconds,
                                  env={**os.environ, "SHARDD_TESTS_DIR": os.path.join(ROOT, "tests"), **(env or {})},
                                  check=False)
        except subprocess.TimeoutExpired:
            raise Failed("%s: not done in %d s" % (os.path.basename(command[0]), seconds)) from None
        if done.returncode != 0:
            lines = (done.stdout + done.stderr).strip().splitlines()
            raise Failed("%s: status %d: %s" % (" ".join(map(os.path.basename, command[:4])), done.returncode,
                                                " | ".join(lines[-12:])[-1500:]))
        return done

    def synth(self, folder, *flags):
        """A folder of the 27B sizes with made-up weights, or without any."""
        self.run([self.program("shardd-checkpoint"), "synth", folder, "--config", "27b", *flags], 400)
        return folder


class Service:
    """`shardd serve` on a socket in a folder, from its start to the end of a with block."""

    def __init__(self, build, folder, device, *flags, model=MODEL):
        self.build, self.address = build, "unix:%s/%s.sock" % (folder, device)
        self.log = open("%s/%s.log" % (folder, device), "w+", encoding="utf-8")
        self.began = time.time()
        self.process = subprocess.Popen(
            [build.program("shardd"), "serve", "--model", model, "--device", device, "--uds", self.address[5:],
             "--max-model-len", "2048", *flags], stdout=self.log, stderr=self.log)

    def __enter__(self):
        while time.time() < self.began + START_SECONDS and self.process.poll() is None:
            done = subprocess.run([self.build.program("shardd"), "status", "--server", self.address],
                                  capture_output=True, check=False)
            if done.returncode == 0:
                self.ready_seconds = time.time() - self.began
                return self
            time.sleep(0.1)
        self.__exit__()
        raise Failed("the service does not come up: %s" % self.said()[-1500:])

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def ids(self, record):
        done = self.build.run(
            [self.build.program("shardd"), "generate", "--server", self.address, "--temperature", "0", "--max-tokens",
             "64", "--token-ids", "--quiet", "--prompt-token-ids", " ".join(map(str, record["prompt_ids"]))], 120)
        return done.stdout.split()


def descendants(pid):
    """pid and all below it."""
    children = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open("/proc/%s/stat" % name, encoding="utf-8") as f:
                children.setdefault(int(f.read().rpartition(") ")[2].split()[1]), []).append(int(name))
        except OSError:
            continue  # it has ended
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def generated(build, worker, model, ids, *flags, tokens=48):
    """[(id, log probability)] of a worker without a service."""
    done = build.run([build.program(worker), "--model", model, "--generate-ids", ",".join(map(str, ids)),
                      "--max-tokens", str(tokens), "--max-model-len", "2048", *flags], 120)
    return [(int(a), float(b)) for a, b in re.findall(r"id\s+(\d+)\s+logprob (-?[\d.]+)", done.stdout)]


def prompts(n):
    """Every so many of the held-out prompts, so that all groups are there."""
    with open(PROMPTS, encoding="utf-8") as f:
        records = [json.loads(line) for line in f]
    return [r for r in records[::max(1, len(records) // n)] if len(r["prompt_ids"]) < 1500][:n]


# --- checks ---

def checks_run(checks, only, run):
    """A line per check; 1 where one fails. Where the probe does, the others are not tried."""
    failed = 0
    for check in checks:
        if only and check.__name__ not in only:
            continue
        begin = time.time()
        try:
            verdict, text = "ok", run(check)
        except Skipped as e:
            verdict, text = "skipped", str(e)
        except (Failed, OSError, ValueError, KeyError) as e:
            verdict, text, failed = "FAILED", str(e), failed + 1
        print("%-10s %-8s %5.0f s  %s" % (check.__name__, verdict, time.time() - begin, text), flush=True)
        if check.__name__ == "probe" and verdict == "FAILED":
            break
    return 1 if failed else 0


# --- Nsight Compute ---

NOT_PERMITTED = ("counters are not permitted to this user: run as root, or load the driver's module with "
                 "NVreg_RestrictProfilingToAdminUsers=0")


def ncu_program():
    for path in (shutil.which("ncu"), "/usr/local/cuda/bin/ncu"):
        if path and os.path.exists(path):
            return path
    raise Skipped("Nsight Compute (ncu) is not on this machine: it comes with a CUDA toolkit")


def ncu(command, metrics, seconds, *flags):
    """[{"Kernel Name": ..., metric: number}] of every kernel that a command launches, in order; and what ncu said."""
    asked = [ncu_program(), "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none",
             "--cache-control", "none", "--metrics", ",".join(metrics), *flags, *command]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, errors="replace", timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise Failed("ncu: not done in %d s" % seconds) from None
    text = done.stdout + done.stderr
    if "ERR_NVGPUCTRPERM" in text:
        raise Skipped(NOT_PERMITTED)
    if done.returncode != 0:
        raise Failed("ncu: status %d: %s" % (done.returncode, " | ".join(text.strip().splitlines()[-6:])[-1500:]))
    return rows_of(done.stdout, metrics), text


def rows_of(text, metrics):
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise Failed("ncu wrote no table: %s" % " | ".join(lines[-6:])[-1500:])
    rows = csv.DictReader(line for line in lines[start:] if line.startswith('"'))
    next(rows)  # units
    return [{**row, **{m: float(row[m].replace(",", "")) for m in metrics}} for row in rows]


def steps_of(rows):
    """The launches of each step, begin_kernel to end_kernel: what is sent up before it is not in it."""
    steps, within = [], False
    for row in rows:
        if row["Kernel Name"].startswith("begin_kernel"):
            steps.append([])
            within = True
        if within:
            steps[-1].append(row)
        within = within and not row["Kernel Name"].startswith("end_kernel")
    return steps
