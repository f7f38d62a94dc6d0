"""The benchmark of speculation runs and says the same answers with and without: one stream, some tokens. Not speed."""
import os
import re
import subprocess
import sys

import pytest

from shardd_client import ROOT

BENCH = os.path.join(ROOT, "tests", "bench", "speculation.py")


@pytest.mark.skipif("SHARDD_SANITIZED" in os.environ, reason="of the benchmark, not of the server: it runs unsanitized")
def test_a_row_for_each_drafter():
    flags = ["--streams", "2", "--tokens", "40", "--repeat", "1", "--only", "lookup", "--only", "mtp", "--drafts", "3"]
    run = subprocess.run([sys.executable, BENCH, *flags], capture_output=True, text=True, timeout=600, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    number = r" +[\d.]+"
    rows = re.findall(r"^(\w+) +2%s +[\d.]+-[\d.]+ +([\d.]+|-) +\d+ %%  \S+ \S+ \S+$" % (3 * number), run.stdout, re.M)
    assert [name for name, _ in rows] == ["mtp", "lookup"], run.stdout
