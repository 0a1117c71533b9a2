"""What an outage kept from MLflow is logged afterwards from the catalog."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
from kedro.io import DataCatalog

from conftest import empty_tracking_store
from thawline.errors import DataError
from thawline.tracking.entries import log_version


def catalog(folder: Path, version: str | None = None) -> DataCatalog:
    entries = {
        name: {
            "type": "json.JSONDataset",
            "filepath": f"{folder}/{name}.json",
            "versioned": True,
            "metadata": {"mlflow": kinds},
        }
        for name, kinds in {"metrics": ["metrics", "artifact"], "other": []}.items()
    }
    return DataCatalog.from_config(entries, save_version=version)


def test_the_entries_of_a_version_are_logged_to_a_run_of_its_name(tmp_path: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path)}")
    experiment = mlflow.create_experiment("e", str(tmp_path / "files"))
    mlflow.set_experiment(experiment_id=experiment)
    names = ["metrics", "other", "absent"]
    for version, accuracy in (("1", 0.5), ("2", 0.75)):
        for name in ("metrics", "other"):
            catalog(tmp_path, version).save(name, {"accuracy": accuracy})
    assert log_version(catalog(tmp_path), names, "1") == ["metrics"]
    (run,) = mlflow.MlflowClient().search_runs([experiment])
    assert run.info.run_name == "1" and run.data.tags["version"] == "1"
    assert run.data.metrics == {"accuracy": 0.5}
    files = mlflow.MlflowClient().list_artifacts(run.info.run_id)
    assert [file.path for file in files] == ["metrics.json"]
    with pytest.raises(DataError, match="no catalog entry of version 3"):
        log_version(catalog(tmp_path), names, "3")
