"""Nothing logged to MLflow is lost, not while a server is away, nor while SQLite is locked.

All calls of MLflow's REST API go through one method of its store classes, and all files through one
of its artifact repository. The classes here replace those for `http` and `https`, so that no place
that logs knows of any of this. What a server need not answer (metrics, parameters, tags, files, the
status of a run) is kept in an `Outbox` while it is away, and sent later; for what it must answer (a
new run, a new model, the registry) the run waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import mlflow
import requests
import sqlalchemy
from filelock import FileLock
from mlflow.data.dataset import Dataset
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.protos import service_pb2
from mlflow.protos.databricks_pb2 import BAD_REQUEST, ErrorCode
from mlflow.store.artifact.artifact_repository_registry import _artifact_repository_registry
from mlflow.store.artifact.mlflow_artifacts_repo import MlflowArtifactsRepository
from mlflow.store.model_registry.rest_store import RestStore as RegistryRestStore
from mlflow.store.tracking.rest_store import RestStore
from mlflow.tracking._model_registry.utils import _get_store_registry
from mlflow.tracking._tracking_service.utils import (
    _artifact_repos_cache,
    _tracking_store_registry,
    get_tracking_uri,
)
from mlflow.utils.credentials import get_default_host_creds
from urllib3.util import parse_url

from thawline.data.atomic_write import write_atomic
from thawline.errors import TrackingError

logger = logging.getLogger(__name__)

# Writes whose answer nobody needs. They say the same when they come twice: a process may be killed
# after it has sent one and before it has forgotten it.
LATER = ("LogBatch", "LogMetric", "LogParam", "SetTag", "UpdateRun", "LogInputs", "LogOutputs")
TIMEOUT = 3  # seconds, for a sign of life
PAUSE = 5  # seconds until a server that was away is looked for again
ATTEMPTS = 3  # at a call that a server which is there fails to answer
WAIT = 300  # seconds for which a run waits where it needs an answer
BUSY_SECONDS = 60  # that a write waits for its turn at an SQLite file
SERVER_ERROR = 500  # and all above it, as an HTTP status
OUTAGE = ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE")  # MLflow's codes of no connection and 5xx
# What the client says where a server's own database is away; /health says that all is well.
NO_DATABASE = "too many 503 error responses"

# Waiting is done here. MLflow would try again for minutes at each call.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

Answer = TypeVar("Answer")
Entry = dict[str, Any]


class Outbox:
    """A folder with a JSON file for each thing that is still to be sent, and files beside it."""

    def __init__(self, folder: Path, receiver: str) -> None:
        """Take the folder, which need not exist, and the name of who is to have it all."""
        self.folder, self._receiver = folder, receiver

    def __len__(self) -> int:
        """Return how many entries there are."""
        return len(self._entries())

    def put(self, entry: Entry, attachment: Path | None = None) -> None:
        """Keep an entry, plain data, and a copy of a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
        if attachment is not None:
            path.with_suffix("").mkdir()
            copy = path.with_suffix("") / attachment.name
            write_atomic(copy, lambda file: shutil.copyfile(attachment, file))
        text = json.dumps({"to": self._receiver, **entry})
        write_atomic(path, lambda file: file.write_text(text, encoding="utf-8"))

    def deliver(self, send: Callable[[Entry, Path], bool]) -> None:
        """Send all entries in their order, as long as that works, and forget what was sent.

        Args:
            send: takes an entry and the folder of its file; returns whether to go on. An entry that
                it refuses, by a `ValueError`, is kept under another name and never sent again.
        """
        if not self._entries():
            return
        with FileLock(self.folder / "lock"):
            for path in self._entries():
                try:
                    if not send(json.loads(path.read_text("utf-8")), path.with_suffix("")):
                        return
                except ValueError as error:
                    logger.warning("%s cannot be sent and is left there (%s)", path, error)
                    path.rename(path.with_suffix(".refused"))
                    continue
                path.unlink()
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    def _entries(self) -> list[Path]:
        paths = sorted(self.folder.glob("*.json"))
        return [path for path in paths if self._is_ours(path)]

    def _is_ours(self, path: Path) -> bool:
        try:
            return bool(json.loads(path.read_text("utf-8"))["to"] == self._receiver)
        except FileNotFoundError:  # another process has just sent it
            return False


class Server:
    """An MLflow server that may be away for a while."""

    def __init__(self, uri: str, outbox: Path, on_failure: Literal["buffer", "fail"]) -> None:
        """Take its address, the folder for what it misses, and whether to keep that at all."""
        self.shown = str(parse_url(uri)._replace(auth=None).url)
        self.buffers = on_failure == "buffer"
        self.outbox = Outbox(outbox, self.shown)
        self._store = RestStore(partial(get_default_host_creds, uri))
        self._session, self.uri = requests.Session(), uri
        self._is_there, self._known_until, self._missed = True, 0.0, 0

    def answers(self) -> bool:
        """Return whether the server is there, as found a moment ago."""
        if time.monotonic() >= self._known_until:
            try:
                answer = self._session.get(f"{self.uri.rstrip('/')}/health", timeout=TIMEOUT)
                self._note(answer.status_code < SERVER_ERROR)
            except requests.RequestException:
                self._note(False)
        return self._is_there

    def write(self, entry: Entry, attachment: Path | None = None) -> None:
        """Send something now, or keep it for later.

        Raises:
            TrackingError: when the server is away and nothing is to be kept.
        """
        if self.is_up_to_date():
            with contextlib.suppress(_AwayError):
                self._send(entry, attachment)
                return
        if not self.buffers:
            raise self.absent()
        if not self._missed:
            logger.warning(
                "The MLflow server %s does not answer. The run goes on; what it logs is kept in %s"
                " and sent when the server is back.",
                self.shown,
                self.outbox.folder,
            )
        self._missed += 1
        self.outbox.put(entry, attachment)

    def ask(self, question: Callable[[], Answer]) -> Answer:
        """Return the answer to a question, for which the server must be there.

        Raises:
            TrackingError: when it has not come back in `WAIT` seconds.
        """
        end = time.monotonic() + (WAIT if self.buffers else 0)
        told = False
        while True:
            if self.is_up_to_date():
                with contextlib.suppress(_AwayError):
                    return self._try(question)
            if time.monotonic() >= end:
                raise self.absent()
            if not told:
                logger.warning("The run needs an answer of %s and waits for it.", self.shown)
            told = True
            time.sleep(max(0.0, self._known_until - time.monotonic()))

    def is_up_to_date(self) -> bool:
        """Return whether the server is there and knows all that it has missed."""
        if not self.answers():
            return False
        waiting = len(self.outbox)
        if waiting:
            self.outbox.deliver(self._deliver)
            if not self._is_there:
                return False
            self._missed = 0
            logger.warning(
                "The MLflow server %s answers again; it has been sent what it missed (%d writes).",
                self.shown,
                waiting,
            )
        return True

    def finish(self) -> None:
        """Send what was kept, if the server is there, and say what is left."""
        self._known_until = 0
        if len(self.outbox) and not self.is_up_to_date():
            logger.warning(
                "The MLflow server %s is still away: %d writes wait in %s for the next run.",
                self.shown,
                len(self.outbox),
                self.outbox.folder,
            )

    def absent(self) -> TrackingError:
        """Return what to tell the user."""
        kept = f" What it missed is kept in {self.outbox.folder}." if len(self.outbox) else ""
        return TrackingError(
            f"The MLflow server {self.shown} does not answer.{kept} Start it, or correct"
            " server.mlflow_tracking_uri in mlflow.yml, then repeat the command with"
            " training.resume=true: what was trained is kept."
        )

    def _deliver(self, entry: Entry, folder: Path) -> bool:
        """Send what was kept; return False where the server is away again."""
        try:
            self._send(entry, next(folder.glob("*"), None))
        except _AwayError:
            return False
        except (MlflowException, requests.HTTPError) as error:
            raise ValueError(str(error)) from error
        return True

    def _send(self, entry: Entry, attachment: Path | None) -> None:
        """Send a call or a file."""
        if attachment is None:
            api = getattr(service_pb2, entry["api"])
            self._try(lambda: self._store._call_endpoint(api, entry["body"]))
        else:
            repository = MlflowArtifactsRepository(entry["artifact_uri"], self.uri)
            self._try(lambda: repository.log_artifact(str(attachment), entry["artifact_path"]))

    def _try(self, call: Callable[[], Answer]) -> Answer:
        """Return what a call returns, once more where the server is back already.

        Raises:
            _AwayError: when the server is away.
        """
        for attempt in range(ATTEMPTS):
            try:
                return call()
            except (MlflowException, requests.HTTPError) as error:
                if not _may_be_outage(error):
                    raise
                if NO_DATABASE in str(error):
                    self._note(False)
                else:
                    self._known_until = 0
                if not self.answers():
                    raise _AwayError from error
                if attempt == ATTEMPTS - 1:
                    raise
            time.sleep(PAUSE)
        raise AssertionError

    def _note(self, is_there: bool) -> None:
        self._is_there = is_there
        self._known_until = time.monotonic() + (1 if is_there else PAUSE)


class _AwayError(Exception):
    """The server has just gone away."""


def _may_be_outage(error: MlflowException | requests.HTTPError) -> bool:
    """Return whether there was no connection, or the server or what is before it has failed."""
    if isinstance(error, MlflowException):
        return error.error_code in OUTAGE
    return error.response is None or error.response.status_code >= SERVER_ERROR


class TrackingStore(RestStore):
    """MLflow's store of runs on a server, some of whose writes are kept while that is away."""

    def __init__(self, server: Server) -> None:
        """Take the server."""
        super().__init__(partial(get_default_host_creds, server.uri))
        self._server, self._runs = server, dict[str, Run]()

    def _call_endpoint(self, api: Any, json_body: Any = None, *args: Any, **kwargs: Any) -> Any:
        if api.__name__ in LATER:
            self._server.write({"api": api.__name__, "body": json_body})
            return api.Response()
        return self._server.ask(
            lambda: super(TrackingStore, self)._call_endpoint(api, json_body, *args, **kwargs)
        )

    def create_run(self, *args: Any, **kwargs: Any) -> Run:
        """Return a new run, for which the server must be there."""
        run = super().create_run(*args, **kwargs)
        self._runs[run.info.run_id] = run
        return run

    def get_run(self, run_id: str) -> Run:
        """Return a run; while the server is away, as it was last seen.

        Whoever logs a file asks in this way where files of the run belong.
        """
        if run_id not in self._runs or self._server.answers():
            self._runs[run_id] = super().get_run(run_id)
        return self._runs[run_id]


class RegistryStore(RegistryRestStore):
    """MLflow's registry on a server, for which it waits where that is away."""

    def __init__(self, server: Server) -> None:
        """Take the server."""
        super().__init__(partial(get_default_host_creds, server.uri))
        self._server = server

    def _call_endpoint(self, *args: Any, **kwargs: Any) -> Any:
        return self._server.ask(lambda: super(RegistryStore, self)._call_endpoint(*args, **kwargs))


class Artifacts(MlflowArtifactsRepository):
    """Files of runs and models on a server, which are kept here while that is away."""

    servers: Servers

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        """Take where the files belong."""
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._server = self.servers[tracking_uri or get_tracking_uri()]
        self._uri = artifact_uri  # that of the base class may have a password in it

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        """Send a file, or keep a copy of it."""
        entry = {"artifact_uri": self._uri, "artifact_path": artifact_path}
        self._server.write(entry, Path(local_file))

    def list_artifacts(self, path: str | None = None) -> Any:
        """Return what there is, for which the server must be there."""
        return self._server.ask(lambda: super(Artifacts, self).list_artifacts(path))

    def _download_file(self, *args: Any, **kwargs: Any) -> None:
        self._server.ask(lambda: super(Artifacts, self)._download_file(*args, **kwargs))


class Servers(dict[str, Server]):
    """The servers that this process speaks with, by address; each is there when it is first needed.

    There is no run yet then that could go on without it.
    """

    def __init__(self, outbox: Path, on_failure: Literal["buffer", "fail"]) -> None:
        """Take the folder for what they miss, and whether to keep that at all."""
        super().__init__()
        self._outbox, self._on_failure = outbox, on_failure

    def __missing__(self, uri: str) -> Server:
        """Return a server that has not been spoken with before.

        Raises:
            TrackingError: when it does not answer.
        """
        server = Server(uri, self._outbox, self._on_failure)
        if not server.answers():
            raise server.absent()
        self[uri] = server
        return server

    def finish(self) -> None:
        """Send what they missed, if they are there, and say what is left."""
        for server in self.values():
            server.finish()


def connect(outbox: Path, on_failure: Literal["buffer", "fail"]) -> Servers:
    """Make MLflow use the classes of this module wherever it speaks with a server.

    Args:
        outbox: folder for what a server misses.
        on_failure: buffer: keep what is logged while a server is away; fail: end the run.
    """
    servers = Servers(outbox, on_failure)
    registries = {TrackingStore: _tracking_store_registry, RegistryStore: _get_store_registry()}
    for store, registry in registries.items():
        for scheme in ("http", "https"):
            registry.register(scheme, lambda store_uri, store=store, **_: store(servers[store_uri]))
        # Stores that an earlier session in this process has made.
        registry._get_store_with_resolved_uri.cache_clear()
    _artifact_repos_cache.clear()
    _artifact_repository_registry.register(
        "mlflow-artifacts", type("Artifacts", (Artifacts,), {"servers": servers})
    )
    return servers


def log_input(dataset: Dataset, context: str) -> None:
    """Log a data set as an input of the active run.

    Of two runs that log the same new data set at once MLflow's database refuses one, since both
    insert it. It is there the second time.
    """
    try:
        mlflow.log_input(dataset, context=context)
    except MlflowException as error:
        if error.error_code != ErrorCode.Name(BAD_REQUEST):
            raise
        mlflow.log_input(dataset, context=context)


def wait_for_locks() -> None:
    """Let MLflow wait for a locked SQLite file as long as sweeps do, for the rest of the process.

    MLflow sets 20 s at the beginning of every session, whatever the URI says.
    """

    def patiently(_: Any, __: Any, statement: str, parameters: Any, *___: Any) -> tuple[str, Any]:
        if statement.startswith("PRAGMA busy_timeout"):
            statement = f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}"
        return statement, parameters

    sqlalchemy.event.listen(
        sqlalchemy.Engine, "before_cursor_execute", patiently, retval=True, named=False
    )
