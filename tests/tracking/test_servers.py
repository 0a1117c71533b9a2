"""What a run logs while MLflow's server is away, or its SQLite file locked, arrives later."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import Metric
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST, TEMPORARILY_UNAVAILABLE
from mlflow.server import ARTIFACTS_DESTINATION_ENV_VAR, SERVE_ARTIFACTS_ENV_VAR, app, handlers
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from werkzeug.serving import BaseWSGIServer, make_server

from conftest import empty_tracking_store
from thawline.errors import TrackingError
from thawline.tracking import servers as tracking
from thawline.tracking.servers import Outbox, Servers, connect, log_input, wait_for_locks


class RealServer:
    """MLflow's own server, in a thread, on the same port whenever it is started."""

    def __init__(self) -> None:
        self.port = 0
        self._server: BaseWSGIServer | None = None

    def start(self) -> None:
        self._server = make_server("127.0.0.1", self.port, app, threaded=True)
        self.port = self._server.port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._server = None


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RealServer]:
    database = shutil.copy(empty_tracking_store(), tmp_path / "mlflow.db")
    monkeypatch.setenv(ARTIFACTS_DESTINATION_ENV_VAR, str(tmp_path / "artifacts"))
    monkeypatch.setenv(SERVE_ARTIFACTS_ENV_VAR, "true")
    for name in ("_tracking_store", "_model_registry_store", "_artifact_repo"):
        monkeypatch.setattr(handlers, name, None)
    before = mlflow.get_tracking_uri()
    handlers.initialize_backend_stores(f"sqlite:///{database}", None, "mlflow-artifacts:/")
    mlflow.set_tracking_uri(before)
    for name, value in {"TIMEOUT": 1, "PAUSE": 0.05, "WAIT": 0.2}.items():
        monkeypatch.setattr(tracking, name, value)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    real = RealServer()
    real.start()
    yield real
    real.stop()


def open_client(server: RealServer, folder: Path, on_failure: str) -> tuple[MlflowClient, Servers]:
    servers = connect(folder / "outbox", on_failure)
    return MlflowClient(f"http://127.0.0.1:{server.port}"), servers


def test_what_is_logged_during_an_outage_arrives_as_it_was(
    server: RealServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, servers = open_client(server, tmp_path, "buffer")
    experiment = client.create_experiment("e", "mlflow-artifacts:/e")
    run_id = client.create_run(experiment).info.run_id
    for epoch in range(1, 7):
        if epoch == 2:
            server.stop()
        client.log_metric(run_id, "loss", 1 / epoch, timestamp=1000 + epoch, step=epoch)
    client.log_batch(run_id, metrics=[Metric("accuracy", 0.5, 1010, 6)])
    client.set_tag(run_id, "color", "red")
    client.set_tag(run_id, "color", "green")
    client.log_text(run_id, "first", "notes.txt")
    client.log_text(run_id, "second", "notes.txt")
    client.set_terminated(run_id, end_time=2000)
    assert caplog.text.count("does not answer") == 1
    assert len(list((tmp_path / "outbox").glob("*.json"))) == 11
    servers.finish()
    assert "11 writes wait" in caplog.text

    server.start()
    client, _ = open_client(server, tmp_path, "buffer")  # as another process would
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED" and run.info.end_time == 2000
    assert run.data.tags["color"] == "green" and run.data.metrics["accuracy"] == 0.5
    losses = [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, "loss")]
    assert losses == [(epoch, 1000 + epoch, 1 / epoch) for epoch in range(1, 7)]
    assert Path(client.download_artifacts(run_id, "notes.txt")).read_text() == "second"
    assert [path.name for path in (tmp_path / "outbox").iterdir()] == ["lock"]


def test_what_was_missed_is_sent_before_anything_new(server: RealServer, tmp_path: Path) -> None:
    client, _ = open_client(server, tmp_path, "buffer")
    run_id = client.create_run("0").info.run_id
    server.stop()
    client.set_tag(run_id, "color", "red")
    server.start()
    time.sleep(2 * tracking.PAUSE)
    client.set_tag(run_id, "color", "green")
    assert client.get_run(run_id).data.tags["color"] == "green"


def test_what_needs_an_answer_waits_and_is_then_refused(
    server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = open_client(server, tmp_path, "buffer")
    server.stop()
    with pytest.raises(TrackingError, match=r"does not answer.*training\.resume=true"):
        client.create_run("0")
    with pytest.raises(TrackingError):
        client.create_registered_model("m")
    monkeypatch.setattr(tracking, "WAIT", 20)
    threading.Timer(0.3, server.start).start()
    assert client.create_registered_model("m").name == "m"


def test_a_server_whose_database_is_away_counts_as_away(
    server: RealServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, servers = open_client(server, tmp_path, "buffer")
    run_id = client.create_run("0").info.run_id

    def fail(*_: object, **__: object) -> None:
        raise MlflowException("connection refused", TEMPORARILY_UNAVAILABLE)

    with monkeypatch.context() as away:  # the server itself says that it is well
        for name in ("set_tag", "create_run"):
            away.setattr(SqlAlchemyStore, name, fail)
        client.set_tag(run_id, "color", "red")
        assert len(list((tmp_path / "outbox").glob("*.json"))) == 1
        with pytest.raises(TrackingError, match="does not answer"):
            client.create_run("0")
    servers.finish()
    assert client.get_run(run_id).data.tags["color"] == "red"


def test_a_run_may_fail_instead(server: RealServer, tmp_path: Path) -> None:
    client, _ = open_client(server, tmp_path, "fail")
    run_id = client.create_run("0").info.run_id
    server.stop()
    time.sleep(1)  # it was there a moment ago
    with pytest.raises(TrackingError, match="does not answer"):
        client.set_tag(run_id, "color", "red")
    assert not (tmp_path / "outbox").exists()


def test_without_a_server_nothing_begins(server: RealServer, tmp_path: Path) -> None:
    server.stop()
    with pytest.raises(TrackingError, match=rf"http://127.0.0.1:{server.port} does not answer"):
        open_client(server, tmp_path, "buffer")


def test_a_password_is_not_kept_and_what_is_refused_does_not_block_the_rest(
    server: RealServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    servers = connect(tmp_path / "outbox", "buffer")
    client = MlflowClient(f"http://user:secret@127.0.0.1:{server.port}")
    run_id = client.create_run("0").info.run_id
    server.stop()
    client.set_tag("0" * 32, "color", "red")  # of a run that somebody has deleted meanwhile
    client.log_text(run_id, "text", "notes.txt")
    assert all("secret" not in p.read_text() for p in (tmp_path / "outbox").glob("*.json"))
    server.start()
    servers.finish()
    assert Path(client.download_artifacts(run_id, "notes.txt")).read_text() == "text"
    assert len(list((tmp_path / "outbox").glob("*.refused"))) == 1
    assert "cannot be sent" in caplog.text and "secret" not in caplog.text


def test_another_servers_entries_are_left_to_it(tmp_path: Path) -> None:
    Outbox(tmp_path, "http://one").put({"n": 1})
    sent: list[int] = []
    for receiver in ("http://other", "http://one"):
        box = Outbox(tmp_path, receiver)
        box.deliver(lambda entry, _: bool(sent.append(entry["n"])) or True)
        assert len(box) == 0
    assert sent == [1]


@pytest.mark.parametrize("seconds", [1.5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_locked_sqlite_file_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    """MLflow's own patience of 20 s is set at the beginning of each of its sessions."""
    file = shutil.copy(empty_tracking_store(), tmp_path / "mlflow.db")
    wait_for_locks()
    client = MlflowClient(f"sqlite:///{file}")
    run_id = client.create_run("0").info.run_id
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(seconds, other.rollback).start()
    start = time.perf_counter()
    client.log_metric(run_id, "loss", 0.5)
    assert time.perf_counter() - start > seconds / 2
    assert client.get_run(run_id).data.metrics == {"loss": 0.5}
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(tracking, "BUSY_SECONDS", 0.1)
    with pytest.raises(mlflow.exceptions.MlflowException, match="locked"):
        client.log_metric(run_id, "loss", 0.25)
    other.close()


def test_two_runs_log_the_same_data_set_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path)}")
    experiment = MlflowClient().create_experiment("e", str(tmp_path / "files"))
    other = MlflowClient().create_run(experiment).info.run_id
    write = SqlAlchemyStore._log_inputs_impl

    def overtaken(store: SqlAlchemyStore, of: str, run: str, *inputs: object) -> None:
        write(store, of, other, *inputs)
        monkeypatch.setattr(SqlAlchemyStore, "_log_inputs_impl", write)
        raise MlflowException("UNIQUE constraint failed: datasets.name", BAD_REQUEST)

    monkeypatch.setattr(SqlAlchemyStore, "_log_inputs_impl", overtaken)
    table = from_pandas(pd.DataFrame({"label": ["ants", "bees"]}), name="splits")
    with mlflow.start_run(experiment_id=experiment) as run:
        log_input(table, "training")
        with pytest.raises(MlflowException, match="exceeds"):
            log_input(table, "x" * 100_000)
    for run_id in (run.info.run_id, other):
        (found,) = MlflowClient().get_run(run_id).inputs.dataset_inputs
        assert found.dataset.name == "splits"
