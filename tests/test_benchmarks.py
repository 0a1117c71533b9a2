"""Benchmarks run, at sizes that take seconds: what they measure is nobody's business here."""

import json
import re
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, environment


def test_a_dry_run_takes_every_step_of_the_gpu_benchmark_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", f"--json={file}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(file.read_text())
    for section in ("line", "precision", "decoding", "store", "epochs", "compilation"):
        assert f"\n{section}\n" in done.stdout and results[section]


def test_the_store_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.store", "--entries", "500", "--values", "16"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\| 500 \| 1 \| 0 \| [\d.]+ \| \d+ \|", done.stdout)
