"""`thawline doctor` opens MLflow's store and finds runs that lost their process."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import empty_tracking_store
from thawline.cli import doctor_tracking as doctor
from thawline.tracking.process_context import BEGAN, process_tags


def test_the_tracking_store_is_opened_and_its_schema_compared(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    assert "will be created by the first run" in doctor.check_tracking(uri, tmp_path)[0].message
    assert not file.exists()
    shutil.copy(empty_tracking_store(), file)
    assert doctor.check_tracking(uri, tmp_path)[0].state == "ok"
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
    finding = doctor.check_tracking(uri, tmp_path)[0]
    assert finding.state == "problem" and "mlflow db upgrade" in finding.message
    file.write_bytes(b"not a database" * 100)
    assert doctor.check_tracking(uri, tmp_path)[0].state == "problem"


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "nosuch://user:secret@localhost/name",
        "postgresql://user:secret@localhost:1/name",
        "http://user:secret@localhost:1",
    ],
)
def test_a_store_that_cannot_be_opened_is_a_problem_and_its_password_no_output(
    uri: str, tmp_path: Path
) -> None:
    finding = doctor.check_tracking(uri, tmp_path)[0]
    assert finding.state == "problem"
    assert "secret" not in finding.message


def test_runs_whose_process_is_gone_are_told(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert doctor.check_runs(uri, "thawline") == [] and not list(tmp_path.iterdir())
    shutil.copy(empty_tracking_store(), tmp_path / "mlflow.db")
    client = MlflowClient(uri)
    assert doctor.check_runs(uri, "thawline") == []
    experiment = client.create_experiment("thawline")
    client.create_run(experiment, tags=process_tags())
    assert doctor.check_runs(uri, "thawline") == []
    earlier = process_tags() | {BEGAN: "0"}  # of another process with the same number
    run = client.create_run(experiment, tags=earlier, run_name="finetune")
    finding = doctor.check_runs(uri, "thawline")[0]
    assert finding.state == "warning" and f"finetune ({run.info.run_id})" in finding.message
