"""`thawline doctor` opens MLflow's store and finds runs that lost their process."""

import shutil
import sqlite3
from pathlib import Path

import pytest
from mlflow import MlflowClient

from conftest import empty_tracking_store
from thawline.cli.doctor import Advice
from thawline.cli.doctor_checks import check_tracking
from thawline.errors import TrackingError
from thawline.tracking.process_context import BEGAN, ProcessContext


def test_the_tracking_store_is_opened_and_its_schema_compared(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    uri = f"sqlite:///{file}"
    assert check_tracking(uri, "thawline") == f"{uri} will be created by the first run"
    assert not file.exists()
    sqlite3.connect(file).close()  # an empty database, as a team's new one
    assert check_tracking(uri, "thawline").endswith("will be created by the first run")
    shutil.copy(empty_tracking_store(), file)
    assert check_tracking(uri, "thawline") == uri
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '0a8213491aaa'")
    with pytest.raises(TrackingError, match="mlflow db upgrade"):
        check_tracking(uri, "thawline")
    file.write_bytes(b"not a database" * 100)
    with pytest.raises(TrackingError, match="cannot be opened"):
        check_tracking(uri, "thawline")


@pytest.mark.parametrize(
    "uri",
    [
        "mlruns",
        "nosuch://user:secret@localhost/name",
        "postgresql://user:secret@localhost:1/name",
        "http://user:secret@localhost:1",
    ],
)
def test_a_store_that_cannot_be_opened_is_a_problem_and_its_password_no_output(uri: str) -> None:
    with pytest.raises(TrackingError) as raised:
        check_tracking(uri, "thawline")
    assert "secret" not in str(raised.value)


def test_runs_whose_process_is_gone_are_told(tmp_path: Path) -> None:
    uri = f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path / 'mlflow.db')}"
    client = MlflowClient(uri)
    experiment = client.create_experiment("thawline")
    client.create_run(experiment, tags=ProcessContext().tags())
    assert check_tracking(uri, "thawline") == uri
    earlier = ProcessContext().tags() | {BEGAN: "0"}  # of another process with the same number
    run = client.create_run(experiment, tags=earlier, run_name="finetune")
    with pytest.raises(Advice, match=rf"finetune \({run.info.run_id}\): RUNNING"):
        check_tracking(uri, "thawline")
