"""The benchmark of an agent's conversation runs, and says what it should: its first turns, on a small model."""
import os
import subprocess
import sys

import pytest

from shardd_client import ROOT

REPLAY = os.path.join(ROOT, "tests", "bench", "agent", "replay.py")


@pytest.mark.skipif("SHARDD_SANITIZED" in os.environ, reason="of the benchmark, not of the server: it runs unsanitized")
def test_an_agent_is_not_computed_twice():
    # Of what was seen before all but the last block of each turn is reused.
    run = subprocess.run([sys.executable, REPLAY, "--turns", "2", "--answer", "2", "--agents", "2", "--least", "97"],
                         capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "answers: the same" in run.stdout
