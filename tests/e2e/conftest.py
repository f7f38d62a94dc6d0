"""Fixtures of the end-to-end tests: one synthetic model and, per file, one running server."""
import os
import shutil
import sys
import tempfile

import pytest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from shardd_client import Server, shardd  # noqa: E402


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: left out of sanitizer runs")
    config.addinivalue_line("markers", "emulated: the CUDA worker over the emulation; a stage of its own")


@pytest.fixture(scope="session")
def model():
    """A synthetic checkpoint with a byte-level tokenizer: random weights, the whole path."""
    folder = tempfile.mkdtemp(prefix="shardd-model-")
    path = os.path.join(folder, "tiny")
    done = shardd("synth", path, "--config", "tiny", "--seed", "7")
    assert done.returncode == 0, done.stdout + done.stderr
    yield path
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server(model):
    with Server(model, "--tensor-parallel-size", "2", "--max-model-len", "2048", "--max-num-seqs", "64") as running:
        yield running


@pytest.fixture()
def client(server):
    with server.client() as connected:
        yield connected
