"""A new user's path: docs/quick-start.md, typed command by command in a fresh environment."""

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from conftest import ROOT

pytestmark = pytest.mark.slow

BLOCK = re.compile(r'^```bash(?: title="(http[^"]+)")?\n(.*?)^```', re.S | re.M)


def test_the_quick_start_works_command_by_command(photos: Path, tmp_path: Path) -> None:
    """A block with an address as its title is a server: it is started, asked and stopped."""
    clone = tmp_path / "thawline"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    shutil.copytree(photos, clone / "photos")
    blocks = BLOCK.findall((clone / "docs" / "quick-start.md").read_text(encoding="utf-8"))
    assert len(blocks) > 5
    typed = ""
    for address, commands in blocks:
        for command in commands.replace("\\\n", "").splitlines():
            start = time.perf_counter()
            if address:
                check_server(command, address, clone)
                print(f"{time.perf_counter() - start:6.1f} s  {command}, until {address} answers")
                continue
            # One shell a command would forget what the one before it activated.
            typed += f"{command}\n" if re.match("source|export", command) else ""
            done = type_in(f"{typed}{command}", clone)
            print(f"{time.perf_counter() - start:6.1f} s  {command}")
            assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            if "read_parquet" in command:  # not a digit
                assert "temple" in done.stdout and "flower" in done.stdout, done.stdout
            if "doctor" in command:
                assert "problem" not in done.stdout, done.stdout
    shutil.rmtree(clone)  # pytest would keep the 6 GB of the environment for three more runs


def type_in(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script in a shell that knows nothing of the environment of the tests."""
    return subprocess.run(
        ["bash", "-e"], input=script, cwd=folder, env=bare(), capture_output=True, text=True,
        timeout=1800, check=False,
    )  # fmt: skip


def bare() -> dict[str, str]:
    hidden = ("PYTHONPATH", "VIRTUAL_ENV", "OMP_NUM_THREADS", "KEDRO_ENV", "MLFLOW_TRACKING_URI")
    return {name: value for name, value in os.environ.items() if name not in hidden}


def check_server(command: str, address: str, folder: Path) -> None:
    """Start a server in the environment that the page made, wait for its answer and stop it."""
    assert not answers(address), f"something else answers at {address}; stop it first"
    script = ["bash", "-ec", f"source .venv/bin/activate\n{command}"]
    env = bare() | {"BROWSER": "true"}  # a command that opens nothing
    process = subprocess.Popen(script, cwd=folder, env=env, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not answers(address):
            assert process.poll() is None, f"{command} ended"
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(1)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
