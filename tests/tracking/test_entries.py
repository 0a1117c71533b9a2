"""Catalog entries arrive in MLflow as their metadata says, after an outage too."""

import shutil
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from kedro.io import DataCatalog
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from conftest import empty_tracking_store
from thawline.errors import DataError
from thawline.tracking.entries import log_entry, log_version


@pytest.fixture
def experiment(tmp_path: Path) -> str:
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path)}")
    mlflow.set_experiment(experiment_id="0")  # not one that an earlier test has left
    return str(MlflowClient().create_experiment("e", str(tmp_path / "files")))


def catalog(name: str, *kinds: str, suffix: str = "txt") -> DataCatalog:
    entry = {"type": "text.TextDataset", "filepath": f"{name}.{suffix}"}
    return DataCatalog.from_config({name: entry | {"metadata": {"mlflow": [*kinds]}}})


def test_an_entry_is_logged_as_its_metadata_says(experiment: str) -> None:
    with mlflow.start_run(experiment_id=experiment) as run:
        log_entry(catalog("numbers", "metrics", "artifact"), "numbers", {"accuracy": 0.5})
        log_entry(catalog("report", "artifact", suffix="html"), "report", "<html>")
        log_entry(catalog("choice", "tags"), "choice", {"strategy": "full"})
        log_entry(catalog("plain"), "plain", "nothing says that this is logged")
    found = {file.path for file in MlflowClient().list_artifacts(run.info.run_id)}
    assert found == {"numbers.json", "report.html"}
    data = MlflowClient().get_run(run.info.run_id).data
    assert data.metrics == {"accuracy": 0.5}
    assert data.tags["strategy"] == "full"


def test_two_runs_log_the_same_new_table_at_once(
    experiment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MlflowClient().create_run(experiment).info.run_id
    write = SqlAlchemyStore._log_inputs_impl

    def overtaken(store: SqlAlchemyStore, of: str, run: str, *inputs: object) -> None:
        write(store, of, other, *inputs)
        monkeypatch.setattr(SqlAlchemyStore, "_log_inputs_impl", write)
        raise MlflowException("UNIQUE constraint failed: datasets.name", BAD_REQUEST)

    monkeypatch.setattr(SqlAlchemyStore, "_log_inputs_impl", overtaken)
    with mlflow.start_run(experiment_id=experiment) as run:
        log_entry(catalog("splits", "input"), "splits", pd.DataFrame({"label": ["ants", "bees"]}))
    for run_id in (run.info.run_id, other):
        (found,) = MlflowClient().get_run(run_id).inputs.dataset_inputs
        assert found.dataset.name == "splits"


def versioned(folder: Path, version: str | None = None) -> DataCatalog:
    entry = {"type": "json.JSONDataset", "versioned": True}
    entries = {
        name: entry | {"filepath": f"{folder}/{name}.json", "metadata": {"mlflow": kinds}}
        for name, kinds in {"metrics": ["metrics", "artifact"], "other": []}.items()
    }
    return DataCatalog.from_config(entries, save_version=version)


def test_the_entries_of_a_version_are_logged_to_a_run_of_its_name(
    experiment: str, tmp_path: Path
) -> None:
    mlflow.set_experiment(experiment_id=experiment)
    names = ["metrics", "other", "absent"]
    for version, accuracy in (("1", 0.5), ("2", 0.75)):
        for name in ("metrics", "other"):
            versioned(tmp_path, version).save(name, {"accuracy": accuracy})
    assert log_version(versioned(tmp_path), names, "1") == ["metrics"]
    (run,) = MlflowClient().search_runs([experiment])
    assert run.info.run_name == "1" and run.data.tags["version"] == "1"
    assert run.data.metrics == {"accuracy": 0.5}
    files = MlflowClient().list_artifacts(run.info.run_id)
    assert [file.path for file in files] == ["metrics.json"]
    with pytest.raises(DataError, match="no catalog entry of version 3"):
        log_version(versioned(tmp_path), names, "3")
