"""MLflow's model registry: the names of models, their versions, and what these contain."""

import dataclasses
import hashlib
import json
import re
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import mlflow
from mlflow.exceptions import MlflowException

from thawline.data.packaged_datasets import LIBRARIES
from thawline.data.sources import TABLES
from thawline.errors import ThawlineError, first_names
from thawline.networks.classifier import Classifier, load_classifier
from thawline.networks.files import read_seen
from thawline.options import ModelOptions

CHAMPION = "champion"  # the alias of the version to use
ARTIFACTS = "artifacts"  # MLflow's folder for them within a model
CLASSIFIER = "classifier"  # the folder in it
LABELS_FILE = "test_answers.json"
LOAD_ERRORS = (MlflowException, ThawlineError, OSError, ValueError)
# MLflow's error codes for a model, version or alias that does not exist.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
MAX_NAMES_IN_MESSAGE = 5


class ProjectFolders(NamedTuple):
    """Where a project keeps its own models."""

    classifiers: Path  # with one folder per version of the catalog entry `classifier`
    registrations: Path  # the same of the catalog entry `registration`
    base: Path  # that relative paths are relative to


def default_name(root: str, class_names: Sequence[str]) -> str:
    """Return the name of a registered model: that of its data set, and a hash of its classes.

    So models with other classes never share a name, nor a champion.
    """
    library, _, name = root.partition(":")
    if library not in LIBRARIES:
        path = PurePath(root)
        name = path.stem if path.suffix.lower() in TABLES else path.name
    readable = re.sub(r"\W+", "-", name).strip("-") or "images"
    digest = hashlib.sha256("\n".join(sorted(class_names)).encode()).hexdigest()
    return f"{readable}-{digest[:6]}"


def find_version(name: str, alias: str, client: mlflow.MlflowClient | None = None) -> str | None:
    """Return the version of a registered model that has an alias, None if there is none."""
    try:
        client = client or mlflow.MlflowClient()
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code in ABSENT:
            return None
        raise


def load_logged(uri: str, own: ModelOptions) -> tuple[Classifier, dict[str, str]]:
    """Return the classifier at an MLflow URI, and its stored labels of its test images by SHA-256.

    `own` are the model options of the run, which say what code may be imported. If the model cannot
    be loaded, this raises one of `LOAD_ERRORS`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary), ARTIFACTS)
        classifier = load_classifier(folder / CLASSIFIER, own)
        seen = classifier.seen or read_seen(folder)  # where earlier versions kept it
        file = folder / LABELS_FILE
        labels = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return dataclasses.replace(classifier, seen=seen), labels


def store_labels(uri: str, labels: dict[str, str]) -> None:
    """Store a model's labels of its test images, by SHA-256, for later candidates to reuse."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, LABELS_FILE)
        file.write_text(json.dumps(labels), encoding="utf-8")
        model_id = uri.removeprefix("models:/")
        mlflow.MlflowClient().log_model_artifact(model_id, str(file), ARTIFACTS)


def list_classes(names: Collection[str]) -> str:
    """Return the number of classes and the first names."""
    return f"{len(names)} classes: {first_names(sorted(names), MAX_NAMES_IN_MESSAGE)}"
