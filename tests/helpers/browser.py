"""A server on a free port, for a browser."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
PHONE = {"width": 390, "height": 844}
SECONDS = 120  # that a server or a page is waited for

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium on the PATH")


@contextmanager
def served(
    folder: Path, command: str, *arguments: str, page: str = "", **variables: str
) -> Iterator[str]:
    """Start a server on a free port, with variables beside ours; yield its address.

    It has begun when it answers at `page`; its log is beside the folder.
    """
    port = free_port()
    log_file = folder.parent / f"{command}.log"
    with log_file.open("w") as log:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name(command)), *arguments, "--port", str(port)],
            cwd=folder, env={**os.environ, **variables}, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}{page}", process, log_file)
        yield address
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=SECONDS)


def free_port() -> int:
    """Return a port that nobody listens on; kedro viz takes none above 49151."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(2 * SECONDS):
        assert process.poll() is None, log.read_text()
        try:
            urllib.request.urlopen(address, timeout=5)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
        else:
            return
    raise AssertionError(f"{address} did not answer:\n{log.read_text()}")


def wait_until(page: Any, condition: str) -> None:
    """Wait until a condition in JavaScript holds, on a page that forbids to evaluate strings."""
    for _ in range(10 * SECONDS):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{condition} did not become true")


def serious_problems(page: Any) -> list[str]:
    """Return what hinders people who see, hear or move otherwise, after axe-core."""
    from axe_playwright_python.sync_playwright import Axe  # the lowest versions are tested without

    found = Axe().run(page).response["violations"]
    return [
        f"{problem['id']}: {node['html']}"
        for problem in found
        if problem["impact"] in ("serious", "critical")
        for node in problem["nodes"]
    ]
