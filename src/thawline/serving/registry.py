"""Read and write MLflow's model registry."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import mlflow
from mlflow.exceptions import MlflowException

CHAMPION = "champion"  # the alias of the version to use
ARTIFACTS = "artifacts"  # MLflow's folder for them within a model
CLASSIFIER = "classifier"  # the folder in it
LABELS_FILE = "test_answers.json"
# MLflow's error codes for a model, version or alias that does not exist.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")

Loaded = TypeVar("Loaded")


class ProjectFolders(NamedTuple):
    """Where a project keeps its own models."""

    classifiers: Path  # with one folder per version of the catalog entry `classifier`
    registrations: Path  # the same of the catalog entry `registration`
    base: Path  # that relative paths are relative to


def find_version(name: str, alias: str) -> str | None:
    """Return the version of a registered model that has an alias, None if there is none."""
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def read_artifacts(uri: str, read: Callable[[Path], Loaded]) -> Loaded:
    """Return what `read` makes of the folder with the artifacts of a model."""
    with tempfile.TemporaryDirectory() as temporary:
        return read(Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary), ARTIFACTS))


def store_labels(uri: str, labels: dict[str, str]) -> None:
    """Store a model's labels of its test images, by SHA-256, among its artifacts.

    A later candidate with the same test images reuses them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, LABELS_FILE)
        file.write_text(json.dumps(labels), encoding="utf-8")
        model_id = uri.removeprefix("models:/")
        mlflow.MlflowClient().log_model_artifact(model_id, str(file), ARTIFACTS)


def load_labels(artifacts: Path) -> dict[str, str]:
    """Return what `store_labels` stored, nothing if it stored none."""
    file = artifacts / LABELS_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
