"""Whole runs go through a full disk, a restarted server and a locked database, and lose nothing."""

import os
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from conftest import QUICK, copy_project, kedro, report, run_kedro, start_kedro
from helpers.servers import MlflowServer, wait_until
from thawline.datasets.resource_datasets import metric_name

LONG = QUICK.replace("training.epochs=2", "training.epochs=40")
USES_A_SERVER = "server: {{ mlflow_tracking_uri: {uri} }}"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path / "server")
    server.start()
    yield server
    server.stop()


def begin(project: Path, params: str, server: MlflowServer, *options: str) -> subprocess.Popen:
    """Return a run that has logged its first epochs."""
    (project / "conf/local/mlflow.yml").write_text(USES_A_SERVER.format(uri=server.uri))
    process = start_kedro(project, "run", *options, params)
    wait_until(lambda: server.folder.joinpath("server.db").exists())
    wait_until(lambda: server.query("select * from metrics where key = 'val/loss' and step > 4"))
    return process


@pytest.mark.slow
def test_a_server_that_is_restarted_during_a_run_has_all_of_it(
    project: Path, photos: Path, server: MlflowServer
) -> None:
    process = begin(project, f"--params=dataset.root={photos},{LONG}", server)
    server.stop()
    time.sleep(5)
    server.start()
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, said + errors
    ((run, status),) = server.query("select run_uuid, status from runs")
    assert status == "FINISHED"
    history = report(project, "history.csv")
    for name in ("train_loss", "val_loss", "val_accuracy"):
        where = f"where run_uuid = '{run}' and key = '{metric_name(name)}'"
        found = server.query(f"select value from metrics {where} order by step")
        assert [value for (value,) in found] == pytest.approx(history[name].tolist())
    files = {path.name for path in server.folder.glob(f"artifacts/*/{run}/artifacts/*")}
    assert {"history.csv", "metrics.json", "learning_curves.json", "finetune_report.html"} <= files
    assert server.query("select version from model_versions") == [(1,)]


@pytest.mark.slow
def test_a_long_outage_ends_a_run_that_resumes_and_that_can_be_logged_afterwards(
    project: Path, photos: Path, server: MlflowServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    params = f"--params=dataset.root={photos},{LONG}"
    process = begin(project, params, server, "--to-nodes=calibrate_classifier")
    server.stop()
    said, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    shown = " ".join(errors.split())
    assert server.uri in shown and "training.resume=true" in shown
    assert "Traceback" not in said + errors
    server.start()
    run_kedro(project, "run", "--to-nodes=calibrate_classifier", f"{params},training.resume=true")
    statuses = server.query("select status from runs order by start_time")
    assert statuses == [("KILLED",), ("FINISHED",)]
    ((epochs,),) = server.query(
        "select count(*) from metrics join runs using (run_uuid)"
        " where status = 'FINISHED' and key = 'val/loss'"
    )
    assert epochs == 40
    (version,) = (path.name for path in project.glob("data/08_reporting/history.csv/*"))
    run_kedro(project, "log-run", version)
    (run,) = server.query(f"select run_uuid from runs where name = '{version}'")
    files = {path.name for path in server.folder.glob(f"artifacts/*/{run[0]}/artifacts/*")}
    assert "history.csv" in files


@pytest.mark.slow
def test_a_database_that_is_locked_for_ten_seconds_has_all_of_a_run(
    project: Path, photos: Path
) -> None:
    process = start_kedro(project, "run", f"--params=dataset.root={photos},{LONG}")
    database = sqlite3.connect(project / "mlflow.db", isolation_level=None, timeout=60)
    wait_until(lambda: database.execute("select * from metrics where step > 4").fetchall())
    database.execute("BEGIN IMMEDIATE")
    time.sleep(10)
    assert process.poll() is None
    database.execute("ROLLBACK")
    said, errors = process.communicate(timeout=600)
    assert process.returncode == 0, said + errors
    assert database.execute("select status from runs").fetchall() == [("FINISHED",)]
    losses = database.execute("select count(*) from metrics where key = 'val/loss'").fetchall()
    assert losses == [(40,)]
    database.close()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("megabytes", [1, 3, 16, 20])
def test_a_full_disk_damages_nothing_and_the_run_goes_on_when_there_is_room(
    project: Path, photos: Path, tmp_path: Path, megabytes: int
) -> None:
    """The disk is full before training, in it, and while the classifiers are saved."""
    options = f"--params=dataset.root={photos},{QUICK}"
    other = copy_project(tmp_path / "undisturbed")
    run_kedro(other, "run", options)
    data = project / "data"
    data.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}M", "tmpfs", str(data)]
    subprocess.run(mount, check=True)
    try:
        done = kedro(project, "run", options)
        assert done.returncode == 1 and "Traceback" not in done.stdout + done.stderr
        assert f"The disk is full. In {project}" in " ".join(done.stderr.split())
        assert not [*data.rglob(".unfinished.*"), *data.rglob("*.unfinished")]
        subprocess.run(["mount", "-o", "remount,size=200M", str(data)], check=True)
        run_kedro(project, "run", f"{options},training.resume=true")
        weights = "data/06_models/classifier/*/classifier/model.safetensors"
        (expected,) = (path.read_bytes() for path in other.glob(weights))
        assert {path.read_bytes() for path in project.glob(weights)} == {expected}
        assert load_file(next(project.glob(weights)))
    finally:
        subprocess.run(["umount", str(data)], check=True)
    with sqlite3.connect(project / "mlflow.db") as database:
        statuses = database.execute("select status from runs order by start_time").fetchall()
    assert statuses == [("FAILED",), ("FINISHED",)]
    shutil.rmtree(other)
