"""MLflow runs of killed processes do not stay running for ever, and those of living ones do."""

import os
import shutil
import signal
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from conftest import child_process, empty_tracking_store
from thawline.tracking.process_context import (
    BEGAN,
    HOST,
    PID,
    ProcessContext,
    find_stale_runs,
    mark_stale_runs,
)


@pytest.fixture
def client(tmp_path: Path) -> MlflowClient:
    return MlflowClient(f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path)}")


def _create_run_and_wait(uri: str, began: Any) -> None:
    client = MlflowClient(uri)
    run = client.create_run("0", tags=ProcessContext().tags(), run_name="doomed")
    client.create_run("0", tags=ProcessContext().tags() | {"mlflow.parentRunId": run.info.run_id})
    began.touch()
    signal.pause()


def status(client: MlflowClient, run: mlflow.entities.Run) -> str:
    return str(client.get_run(run.info.run_id).info.status)


def test_the_runs_of_a_killed_process_are_marked_and_no_others(
    client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = tmp_path / "began"
    child = child_process(_create_run_and_wait, client.tracking_uri, began)
    child.start()
    while not began.exists():
        assert child.is_alive()
        child.join(0.02)
    mine = ProcessContext().tags()
    alive = client.create_run("0", tags=mine)
    elsewhere = client.create_run("0", tags=mine | {HOST: "another-machine", PID: "1"})
    untagged = client.create_run("0")
    finished = client.create_run("0", tags=mine | {PID: str(child.pid)})
    client.set_terminated(finished.info.run_id)
    assert find_stale_runs(client, "0") == []  # while it lives
    os.kill(child.pid, signal.SIGKILL)
    while not find_stale_runs(client, "0"):  # a zombie already counts, before it is joined
        child.join(0.02)
    mark_stale_runs(client, "0")
    assert [status(client, run) for run in (alive, elsewhere, untagged)] == ["RUNNING"] * 3
    assert status(client, finished) == "FINISHED"
    killed = client.search_runs(["0"], "attributes.status = 'KILLED'")
    assert len(killed) == 2 and {run.data.tags[PID] for run in killed} == {str(child.pid)}
    assert "'doomed'" in caplog.text
    assert find_stale_runs(client, "0") == []


def test_a_later_process_with_the_same_number_is_another_one(client: MlflowClient) -> None:
    tags = ProcessContext().tags()
    earlier = tags | {BEGAN: f"{float(tags[BEGAN]) - 3600:.2f}"}
    run = client.create_run("0", tags=earlier)
    assert [dead.info.run_id for dead in find_stale_runs(client, "0")] == [run.info.run_id]


def test_mlflow_tags_a_run_with_its_process_when_it_is_created(client: MlflowClient) -> None:
    (entry,) = entry_points(group="mlflow.run_context_provider", name="thawline")
    assert entry.load() is ProcessContext
    mlflow.set_tracking_uri(client.tracking_uri)
    mlflow.set_experiment(experiment_id="0")  # not one that an earlier test has left
    with mlflow.start_run() as run:
        assert ProcessContext().tags().items() <= run.data.tags.items()
