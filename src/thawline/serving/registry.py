"""Read and write MLflow's model registry."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

CHAMPION = "champion"  # the alias of the version to use
ARTIFACTS = "artifacts"  # MLflow's folder for them within a model
CLASSIFIER = "classifier"  # the folder in it
LABELS_FILE = "test_answers.json"
VERSION_URI = r"models:/(?P<name>[^/]+)/(?P<version>\d+)"
# MLflow's error codes for a model, version or alias that does not exist.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")

Loaded = TypeVar("Loaded")


class ProjectFolders(NamedTuple):
    """Where a project keeps its own models.

    Attributes:
        classifiers: with one folder per version of the catalog entry `classifier`.
        registrations: with one folder per version of the catalog entry `registration`.
        base: that relative paths are relative to.
    """

    classifiers: Path
    registrations: Path
    base: Path


def find_version(name: str, alias: str) -> str | None:
    """Return the version of a registered model that has an alias, None if there is none."""
    try:
        return str(mlflow.MlflowClient().get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def find_newest_version(name: str) -> ModelVersion:
    """Return the newest version of a registered model.

    Raises:
        ValueError: if there is none.
    """
    (newest,) = mlflow.MlflowClient().search_model_versions(
        f"name={name!r}", max_results=1, order_by=["version_number DESC"]
    )
    return newest


def find_registration_time(uri: str) -> float | None:
    """Return when a version was registered, in seconds since 1970; None for any other URI."""
    match = re.fullmatch(VERSION_URI, uri)
    if not match:
        return None
    version = mlflow.MlflowClient().get_model_version(match["name"], match["version"])
    return float(version.creation_timestamp / 1000)


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


def register_version(uri: str, name: str) -> str:
    """Register a logged model as a new version and return its number."""
    return str(mlflow.register_model(uri, name).version)


def move_alias(name: str, alias: str, version: str) -> None:
    """Move an alias to a version."""
    mlflow.MlflowClient().set_registered_model_alias(name, alias, version)


def describe_version(name: str, version: str, description: str, tags: Mapping[str, Any]) -> None:
    """Set the description and tags of a version."""
    client = mlflow.MlflowClient()
    client.update_model_version(name, version, description=description)
    for tag, text in tags.items():
        client.set_model_version_tag(name, version, tag, text)
