"""Benchmarks run, at sizes that take seconds: what they measure is nobody's business here."""

import re
import subprocess
import sys

from conftest import ROOT, environment


def test_the_store_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.store", "--entries", "500", "--values", "16"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| 500 \| 1 \| 0 \| [\d.]+ \| \d+ \|", done.stdout)
