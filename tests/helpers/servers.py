"""Servers that tests start, stop and start again: PostgreSQL, and MLflow's."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import requests
import sqlalchemy

USER, PASSWORD = "thawline", "pa55word"


class Postgres:
    """PostgreSQL of Debian's package `postgresql`, which asks for a password."""

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

    def create(self, database: str) -> str:
        """Make a database and return its URL."""
        engine = sqlalchemy.create_engine(self.url(), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"create database {database}")
        engine.dispose()
        return self.url(database)

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


class MlflowServer:
    """`mlflow server`, with its files, and if nothing else is said its database, in one folder."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.database = database or f"sqlite:///{folder}/server.db"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("mlflow")), "server", "--workers=1"]
        command += [f"--port={self.port}", f"--artifacts-destination={self.folder}/artifacts"]
        env = {**os.environ, "MLFLOW_BACKEND_STORE_URI": self.database}  # has a password
        self.folder.mkdir(exist_ok=True)
        with (self.folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )
        wait_until(self.answers)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()
        wait_until(lambda: not self.answers())

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.uri}/health", timeout=1).ok
        except requests.RequestException:
            return False

    def query(self, text: str) -> list[tuple]:
        """Return what its database says."""
        engine = sqlalchemy.create_engine(self.database)
        with engine.connect() as connection:
            rows = connection.exec_driver_sql(text).fetchall()
        engine.dispose()
        return [tuple(row) for row in rows]


def wait_until(holds: Callable[[], object], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.2)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
