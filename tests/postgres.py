"""A PostgreSQL server of Debian's package `postgresql`, in a temporary folder of its own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

USER, PASSWORD = "thawline", "pa55word"


class Postgres:
    """A server on this machine that asks for a password."""

    def __init__(self, programs: Path) -> None:
        """Make its folder, which belongs to who runs it: PostgreSQL does not run as root."""
        self._programs, self.folder = programs, Path(tempfile.mkdtemp(prefix="postgres"))
        self.port = free_port()
        (self.folder / "password").write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.folder, self.folder / "password"):
                shutil.chown(path, "postgres", "postgres")
        options = (f"--username={USER}", f"--pwfile={self.folder}/password", "--encoding=UTF8")
        self._run("initdb", *options, "--auth=scram-sha-256", "--no-sync")

    def url(self, database: str = "postgres") -> str:
        return f"postgresql+psycopg://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "start", "-w", f"--log={self.folder}/log", f"--options={options}")

    def stop(self, mode: str = "fast") -> None:
        """End all connections, as a restart does."""
        self._run("pg_ctl", "stop", "-w", f"--mode={mode}")

    def _run(self, program: str, *arguments: str) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        command = [*user, str(self._programs / program), f"--pgdata={self.folder}/data", *arguments]
        subprocess.run(command, cwd=self.folder, check=True, stdout=subprocess.DEVNULL)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
