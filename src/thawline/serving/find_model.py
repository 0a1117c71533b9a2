"""Find a model by what `predict.model` and `export.model` may say."""

import json
import logging
import re
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import mlflow

from thawline.errors import ParameterError
from thawline.networks.classifier import Classifier, load_classifier
from thawline.networks.files import DESCRIPTION_FILE
from thawline.options import AUTO, ModelOptions
from thawline.serving import registry
from thawline.serving.registry import CHAMPION, CLASSIFIER, ProjectFolders, list_classes

logger = logging.getLogger(__name__)

LATEST = "latest"
VERSION_URI = r"models:/(?P<name>[^/]+)/(?P<version>\d+)"
POSSIBLE = (
    f"{CHAMPION} or another alias, a version number, {LATEST}, the id of an MLflow run of finetune,"
    " models:/…, or a classifier's folder"
)
TRAIN_FIRST = "Train one with thawline finetune"


class FoundModel(NamedTuple):
    """A classifier and where it was found."""

    classifier: Classifier
    name: str  # its folder, or its MLflow URI
    saved_at: float | None  # seconds since 1970; None if unknown

    def __str__(self) -> str:
        """Return name, classes and time for the log."""
        facts = list_classes(self.classifier.class_names)
        if self.saved_at is not None:
            facts += f"; saved {datetime.fromtimestamp(self.saved_at):%Y-%m-%d %H:%M}"
        return f"{self.name} ({facts})"


def find_model(
    parameter: str,
    reference: str,
    registry_name: str | None,
    own: ModelOptions,
    folders: ProjectFolders,
) -> FoundModel:
    """Load the classifier that a parameter refers to, and warn if a newer one has other classes.

    Only safetensors and JSON are read, see `load_classifier`. `reference` is an alias, a version,
    latest, an MLflow run id, models:/… or runs:/…, or a classifier's folder; the `registry_name`
    auto is that of the model that this project registered last.

    Raises:
        ParameterError: if there is no such model, or Thawline did not write it.
    """
    if folder := _find_folder(parameter, reference, folders):
        classifier = load_classifier(folder, own)
        saved_at: float | None = (folder / DESCRIPTION_FILE).stat().st_mtime
        found = FoundModel(classifier, str(folder), saved_at)
    else:
        uri = find_uri(parameter, reference, registry_name, folders)
        try:
            classifier, _ = registry.load_logged(uri, own)
            saved_at = None
            if version := re.fullmatch(VERSION_URI, uri):
                client = mlflow.MlflowClient()
                saved_at = client.get_model_version(**version.groupdict()).creation_timestamp / 1000
        except registry.LOAD_ERRORS as error:
            raise ParameterError(
                f"{parameter}: '{reference}' ({uri}) cannot be loaded: {str(error).rstrip('.')}."
                f" Give {POSSIBLE}."
            ) from error
        found = FoundModel(classifier, uri, saved_at)
    _warn_of_newer(found, parameter, folders)
    return found


def _find_folder(parameter: str, reference: str, folders: ProjectFolders) -> Path | None:
    """Return the folder of a classifier, None if the reference names none."""
    if reference == LATEST:
        if newest := _newest_classifier(folders):
            return newest.parent
        raise ParameterError(
            f"{parameter}: there is no classifier in {folders.classifiers} yet. {TRAIN_FIRST}"
        )
    folder = (folders.base / Path(reference).expanduser()).resolve()
    inner = folder / folders.classifiers.name  # of a version in data/06_models/classifier
    return inner if inner.is_dir() else folder if folder.is_dir() else None


def _newest_classifier(folders: ProjectFolders) -> Path | None:
    """Return the description file of the project's newest classifier, if there is one."""
    return max(folders.classifiers.glob(f"*/*/{DESCRIPTION_FILE}"), default=None)


def find_uri(parameter: str, reference: str, name: str | None, folders: ProjectFolders) -> str:
    """Return the MLflow URI of a model that is not a folder; see `find_model`.

    Raises:
        ParameterError: if there is none.
    """
    if reference.startswith(("models:/", "runs:/")):
        return reference
    if re.fullmatch("[0-9a-f]{32}", reference):
        return f"runs:/{reference}/{CLASSIFIER}"
    if name is None:
        raise ParameterError(
            f"{parameter}: '{reference}' would be in MLflow's registry, but registry.name is null."
            " Set it, or give latest, a run id, models:/… or a classifier's folder."
        )
    if name == AUTO:
        name = _last_registered_name(parameter, folders)
    version = reference if reference.isdecimal() else registry.find_version(name, reference)
    if version is None:
        advice = TRAIN_FIRST if reference == CHAMPION else f"Give {POSSIBLE}."
        raise ParameterError(
            f"{parameter}: no version of '{name}' has the alias '{reference}', and there is no"
            f" folder '{reference}'. {advice}"
        )
    return f"models:/{name}/{version}"


def _last_registered_name(parameter: str, folders: ProjectFolders) -> str:
    """Return the name of the model that a run of this project registered last."""
    files = folders.registrations.glob(f"*/{folders.registrations.name}")
    for file in sorted(files, reverse=True):
        result = json.loads(file.read_text(encoding="utf-8"))
        if "registered_version" in result:
            return str(result["registered_model"])
    raise ParameterError(
        f"{parameter}: this project has registered no model yet. {TRAIN_FIRST}, or name a"
        " registered model by registry.name."
    )


def _warn_of_newer(found: FoundModel, parameter: str, folders: ProjectFolders) -> None:
    """Warn if a model that was saved later has other classes; a failed look-up is no obstacle."""
    newest: list[tuple[str, float, list[str], str]] = []  # title, time, classes, reference
    with suppress(*registry.LOAD_ERRORS, LookupError, TypeError):
        if match := re.fullmatch(VERSION_URI, found.name):
            (version,) = mlflow.MlflowClient().search_model_versions(
                f"name={match['name']!r}", max_results=1, order_by=["version_number DESC"]
            )
            info: Any = mlflow.models.get_model_info(f"models:/{version.name}/{version.version}")
            title, names = f"Version {version.version} of", info.metadata["class_names"]
            time, reference = version.creation_timestamp / 1000, version.version
            newest.append((f"{title} '{version.name}'", time, names, reference))
    with suppress(*registry.LOAD_ERRORS, LookupError, TypeError):
        if file := _newest_classifier(folders):
            names = json.loads(file.read_text(encoding="utf-8"))["class_names"]
            newest.append((f"The classifier {file.parent}", file.stat().st_mtime, names, LATEST))
    own = {*found.classifier.class_names}
    for title, saved_at, class_names, reference in newest:
        if found.saved_at and saved_at > found.saved_at and {*class_names} != own:
            logger.warning(
                "%s is newer than %s and has other classes (%s). To use it, set %s=%s.",
                *(title, found.name, list_classes(class_names), parameter, reference),
            )
