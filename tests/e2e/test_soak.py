"""The soak (tests/bench/soak.py), which runs for hours by hand, in its shortest form: nothing is left behind by clients
that cancel, hang up and never read. Memory is not judged: some seconds say nothing of it."""
import os
import subprocess
import sys

import pytest

from shardd_client import ROOT

SOAK = os.path.join(ROOT, "tests", "bench", "soak.py")


@pytest.mark.slow
def test_unfriendly_clients_leave_nothing():
    run = subprocess.run([sys.executable, SOAK, "--rounds", "4", "--seconds", "2", "--clients", "8", "--counts-only"],
                         capture_output=True, text=True, timeout=1200, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 findings" in run.stdout
