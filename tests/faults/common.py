"""common.py - what the fault tests share: a `shardd serve` in a folder of its own, with real children or with scripted
ones (scripted_child.py), and ways to wait for what must happen.

Waiting is always for a fact (an event, a process gone) up to a generous limit: a slow machine makes a test slower,
never wrong."""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("SHARDD_BIN", os.path.join(ROOT, "build/release/bin"))
SHARDD = os.path.join(BIN, "shardd")
PATIENCE = 60 * (5 if os.environ.get("SHARDD_SANITIZED") else 1)


def wait_for(condition, what, limit=PATIENCE):
    """Returns the first true value of condition()."""
    end = time.monotonic() + limit
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError("waited %d s for %s" % (limit, what))
        time.sleep(0.01)


def stat_of(pid):
    """(state letter, parent pid) or None when there is no such process."""
    try:
        with open("/proc/%d/stat" % pid, encoding="utf-8", errors="replace") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return fields[0], int(fields[1])
    except (OSError, IndexError):
        return None


def alive(pid):
    stat = stat_of(pid)
    return stat is not None and stat[0] not in "ZX"


def children_of(pid):
    return [int(entry) for entry in os.listdir("/proc")
            if entry.isdigit() and (stat_of(int(entry)) or ("Z", 0))[1] == pid and alive(int(entry))]


def run_serve(*flags, env=None):
    """A start that is expected to fail: the finished process."""
    return subprocess.run([SHARDD, "serve"] + list(flags), capture_output=True, text=True, timeout=PATIENCE,
                          check=False, env={**os.environ, **(env or {})})


class Serve:
    """One `shardd serve`; the log collects its stdout and stderr and those of its children."""

    def __init__(self, *flags, env=None, command=None, **popen):
        self.folder = tempfile.mkdtemp(prefix="shardd-fault-")
        self.log_path = os.path.join(self.folder, "log")
        words = (command or [SHARDD, "serve"]) + list(flags)
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True,
                                            env={**os.environ, **(env or {})}, **popen)
        self.pid = self.process.pid
        self.seen = set()

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as f:
            return f.read()

    def wait_log(self, text, times=1):
        def found():
            if self.log().count(text) >= times:
                return True
            assert self.process.poll() is None or text in self.log(), "shardd serve ended:\n" + self.log()
            return False
        try:
            wait_for(found, "%r in the log" % text)
        except AssertionError as error:
            raise AssertionError("%s\n%s" % (error, self.log())) from None

    def children(self):
        found = children_of(self.pid)
        self.seen.update(found)
        return found

    def signal(self, number):
        self.process.send_signal(number)

    def wait(self):
        self.children()
        return self.process.wait(PATIENCE)

    def close(self):
        with contextlib.suppress(Exception):
            self.children()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        left = [pid for pid in self.seen if alive(pid)]
        with contextlib.suppress(AssertionError):
            wait_for(lambda: not any(alive(pid) for pid in left), "the children to go", 5)
        for pid in self.seen:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Scripted(Serve):
    """`shardd serve` whose children are scripted_child.py: they follow the control protocol, write down what they are
    told, and misbehave as `script` says."""

    def __init__(self, *flags, tp=2, script=None, env=None, listen=True, command=None, **popen):
        self.home = tempfile.mkdtemp(prefix="shardd-scripted-")
        self.socket = os.path.join(self.home, "grpc")
        model = os.path.join(self.home, "model")
        os.mkdir(model)
        with open(os.path.join(model, "config.json"), "w", encoding="utf-8") as f:
            f.write("{}")
        program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "scripted_child.py")
        for name in ("shardd-coordinator", "shardd-worker-cpu"):
            path = os.path.join(self.home, name)
            with open(path, "w", encoding="utf-8") as f:
                f.write("#!/bin/sh\nexec /usr/bin/python3 -S -E %s %s %s \"$@\"\n" % (program, self.home, name))
            os.chmod(path, 0o755)
        self.script(script or {})
        listening = ["--uds", self.socket] if listen else []
        super().__init__("--model", model, "--libexec-dir", self.home, "--device", "cpu", "-tp", str(tp), *listening,
                         *flags, env=env, command=command, **popen)

    def script(self, script):
        """What children started from now on do; see scripted_child.py."""
        path = os.path.join(self.home, "script.json")
        with open(path + ".new", "w", encoding="utf-8") as f:
            json.dump(script, f)
        os.rename(path + ".new", path)

    def events(self, **match):
        """What the children wrote down, in order; only those with these fields."""
        try:
            with open(os.path.join(self.home, "events"), encoding="utf-8") as f:
                lines = f.read().splitlines()
        except FileNotFoundError:
            return []
        found = [json.loads(line) for line in lines]
        return [e for e in found if all(e.get(k) == v for k, v in match.items())]

    def wait_event(self, n=1, **match):
        try:
            return wait_for(lambda: self.events(**match)[n - 1:n], "event %s" % match)[0]
        except AssertionError as error:
            raise AssertionError("%s\n%s\n%s" % (error, self.events(), self.log())) from None

    def close(self):
        super().close()
        shutil.rmtree(self.home, ignore_errors=True)
