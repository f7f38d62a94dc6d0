"""The CUDA worker over the emulation of tests/cuda_emu: what it says of a machine."""
import json
import os
import subprocess

import pytest

from shardd_client import BIN

WORKER = os.path.join(BIN, "shardd-worker-cuda-emu")
pytestmark = pytest.mark.skipif(not os.path.exists(WORKER), reason="the emulation is not built (thread sanitizer)")


def probe(**machine):
    environment = dict(os.environ, **{"CUDA_EMU_" + name: str(value) for name, value in machine.items()})
    done = subprocess.run([WORKER, "--probe"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_probe():
    found = probe(DEVICES=2, BYTES=5 << 30)
    assert found["kind"] == "cuda" and found["usable"] and found["reason"] == ""
    assert found["driver"] == found["runtime"] == "13.0"
    assert [device["index"] for device in found["devices"]] == [0, 1]
    assert found["devices"][0]["compute_capability"] == "8.6"
    assert found["devices"][0]["memory_total"] == 5 << 30


@pytest.mark.parametrize("machine, why", [
    ({"DRIVER": 0}, "no NVIDIA driver is there"),
    ({"DRIVER": 12040}, "the driver can do CUDA 12.4 and this build needs 13.0"),
    ({"DEVICES": 0}, "the driver shows no GPU"),
    ({"CAPABILITY": 75}, "has compute capability 7.5; 8.0 or higher is needed"),
    ({"CAPABILITY": 80}, "this build has no code for compute capability 8.0"),
])
def test_probe_says_why_not(machine, why):
    found = probe(**machine)
    assert not found["usable"] and why in found["reason"]
