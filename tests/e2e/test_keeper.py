"""Weights that survive their worker, over the emulated GPU: a worker that is killed comes back without loading them and
goes on with the same tokens; whatever else happens costs a normal load."""
import json
import os
import shutil
import signal
import time

import pytest

from shardd_client import PATIENCE, Server, make_request, shardd
from test_cuda import FLAGS, MODEL, RECORDS, WORKER, installed, machine_with_gpu  # noqa: F401 (fixtures)

pytestmark = [pytest.mark.emulated,
              pytest.mark.skipif(not os.path.exists(WORKER), reason="the emulation is not built (thread sanitizer)")]
FOUND = "weights found where the rank before had them"
NEW_TOKENS = 3  # the emulation is slow


def records():
    with open(RECORDS, encoding="utf-8") as f:
        return list(map(json.loads, f))


class Kept(Server):
    """Served by the emulated GPU. Worker and keeper are the same program: what they are is in their command lines."""

    def __init__(self, gpu, *flags, model=MODEL, **machine):
        super().__init__(model, *FLAGS, "--libexec-dir", gpu[0], "--device", "cuda", "--step-timeout", "120s", *flags,
                         env={**gpu[1], **{"CUDA_EMU_" + name: value for name, value in machine.items()}})

    def pids(self, flag):
        found = []
        for pid in self.children():
            with open("/proc/%d/cmdline" % pid, "rb") as f:
                if flag.encode() in f.read().split(b"\0"):
                    found.append(pid)
        return found

    def kill(self, flag, how=signal.SIGKILL):
        pid, = self.pids(flag)
        os.kill(pid, how)

    def wait_log(self, text, times=1):
        end = time.monotonic() + 120 * PATIENCE
        while self.log_text().count(text) < times:
            assert time.monotonic() < end and self.process.poll() is None, self.log_text()
            time.sleep(0.02)


@pytest.fixture(name="gpu")
def make_gpu(installed, machine_with_gpu):  # noqa: F811
    return installed["with"], machine_with_gpu


def test_a_killed_worker_finds_its_weights(gpu):
    """Under a stream; then without its keeper, and with the next one."""
    record = min(records(), key=lambda r: len(r["prompt_ids"]))
    with Kept(gpu) as server, server.client() as client:
        request = make_request(ids=record["prompt_ids"], max_tokens=NEW_TOKENS)
        chunks, killed, ids = client.chunks(request, timeout=300 * PATIENCE), False, []
        for chunk in chunks:
            ids += list(chunk.token_ids)
            if ids and not killed:
                server.kill("--comm-fd")
                killed = True
        assert ids == record["reply_ids"][:NEW_TOKENS]
        server.wait_log("serving again")
        assert "kept for a restart" in server.log_text() and server.log_text().count(FOUND) == 1

        server.kill("--keeper")
        server.wait_log("keeper of rank 0 was killed by SIGKILL")
        server.kill("--comm-fd")
        server.wait_log("serving again", 2)
        assert server.log_text().count(FOUND) == 1 and len(server.pids("--keeper")) == 1
        time.sleep(1.5)  # it has served: what dies sooner, twice in a row, is not given the same weights again
        server.kill("--comm-fd")
        server.wait_log("serving again", 3)
        assert server.log_text().count(FOUND) == 2


def test_a_keeper_that_stands_still_is_replaced(gpu):
    with Kept(gpu) as server:
        server.kill("--keeper", signal.SIGSTOP)
        server.kill("--comm-fd")
        server.wait_log("keeper of rank 0: it does not answer")
        server.wait_log("serving again")
        assert FOUND not in server.log_text() and len(server.pids("--keeper")) == 1


def test_other_weights_are_loaded(gpu, tmp_path):
    folder = str(tmp_path / "tiny")
    shutil.copytree(MODEL, folder)
    with Kept(gpu, model=folder) as server:
        shutil.rmtree(folder)
        assert shardd("synth", folder, "--config", "tiny", "--seed", "8").returncode == 0
        server.kill("--comm-fd")
        server.wait_log("restart the service to change the model")
        assert FOUND not in server.log_text()


def test_without_a_keeper(gpu):
    with Kept(gpu, "--weight-keeper", "off") as server:
        assert not server.pids("--keeper") and "kept for a restart" not in server.log_text()
    with Kept(gpu, SHARED="0") as server:
        assert "weights will not be kept for a restart: " in server.log_text()
        server.kill("--comm-fd")
        server.wait_log("serving again")
        assert FOUND not in server.log_text()
