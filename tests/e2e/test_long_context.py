"""The long context's command (tests/bench/long_context.py), of minutes at 262,144 tokens, at a length for CI."""
import os
import subprocess
import sys

from shardd_client import PATIENCE, ROOT

LONG = os.path.join(ROOT, "tests", "bench", "long_context.py")


def test_a_prompt_that_fills_the_context():
    run = subprocess.run([sys.executable, LONG, "--tokens", "8192", "--no-figures"], capture_output=True, text=True,
                         timeout=600 * PATIENCE, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "the same answer" in run.stdout
