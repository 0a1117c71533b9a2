"""What an outage kept from MLflow is logged afterwards from the catalog."""

from __future__ import annotations

import shutil
from pathlib import Path

import mlflow
import pytest
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline, node

from conftest import empty_tracking_store
from thawline.cli import kedro_run
from thawline.errors import DataError


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


def test_the_entries_of_a_version_are_logged_to_a_run_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{shutil.copy(empty_tracking_store(), tmp_path)}")
    experiment = mlflow.create_experiment("e", str(tmp_path / "files"))
    mlflow.set_experiment(experiment_id=experiment)
    saves = [node(lambda: 0, None, name, name=name) for name in ("metrics", "other", "absent")]
    monkeypatch.setattr(kedro_run, "pipelines", {"__default__": Pipeline(saves)})
    for version, accuracy in (("1", 0.5), ("2", 0.75)):
        for name in ("metrics", "other"):
            catalog(tmp_path, version).save(name, {"accuracy": accuracy})
    kedro_run.log_version(catalog(tmp_path), "1")
    (run,) = mlflow.MlflowClient().search_runs([experiment])
    assert run.info.run_name == "1" and run.data.tags["version"] == "1"
    assert run.data.metrics == {"accuracy": 0.5}
    files = mlflow.MlflowClient().list_artifacts(run.info.run_id)
    assert [file.path for file in files] == ["metrics.json"]
    with pytest.raises(DataError, match="no catalog entry of version 3"):
        kedro_run.log_version(catalog(tmp_path), "3")
