"""Models by name: those of MLflow's registry, of its runs, and folders."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import mlflow
from filelock import FileLock
from mlflow.exceptions import MlflowException

from thawline.datasets.resource_dataset import ResourceDataset
from thawline.datasets.served_model_dataset import CLASSIFIER
from thawline.errors import ParameterError, ThawlineError, TrackingError
from thawline.networks.checkpoints import DESCRIPTION_FILE
from thawline.networks.classifier import Classifier, load_classifier, read_seen
from thawline.options import AUTO, ModelOptions
from thawline.serving.champion import Champion, Verdict, list_classes

logger = logging.getLogger(__name__)

ALIAS = "champion"
LATEST = "latest"
ARTIFACTS = "artifacts"  # MLflow's folder for them within a model
ANSWERS_FILE = "test_answers.json"
VERSION_URI = r"models:/(?P<name>[^/]+)/(?P<version>\d+)"
# What MLflow answers where there is no such model, version or alias.
ABSENT = ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE")
# A lookup of other models may raise these: servers and folders are not always as expected.
LOOKUP_ERRORS = (MlflowException, ThawlineError, OSError, LookupError, TypeError, ValueError)

Loaded = TypeVar("Loaded")


class Found(NamedTuple):
    """A classifier that was asked for.

    Attributes:
        classifier: itself.
        name: its folder, or its address in MLflow.
        saved_at: seconds since 1970; None where it is not known.
    """

    classifier: Classifier
    name: str
    saved_at: float | None

    def __str__(self) -> str:
        """Return name, classes and time for the log."""
        classes = list_classes(self.classifier.class_names)
        when = ""
        if self.saved_at is not None:
            when = f"; saved {datetime.fromtimestamp(self.saved_at):%Y-%m-%d %H:%M}"
        return f"{self.name} ({classes}{when})"


class Registry:
    """One registered model of MLflow and its champion."""

    def __init__(
        self,
        name: str | None,
        own: ModelOptions,
        classifiers: Path,
        registrations: Path,
        base: Path,
    ) -> None:
        """Open the registry of a model.

        Args:
            name: of the registered model; auto: the one that this project registered last; None:
                there is none.
            own: model options of the run, which say what code may be imported.
            classifiers: folder of the project's classifiers.
            registrations: folder of what became of them in the registry.
            base: folder that relative paths are relative to.
        """
        self.name, self._own, self._base = name, own, base
        self._classifiers, self._registrations = classifiers, registrations

    def load(self, parameter: str, reference: str) -> Found:
        """Return a classifier, what it is called, and when it was saved.

        A warning says if a newer one knows other classes.

        It is safetensors and JSON. A factory that it names is imported as `load_classifier` says.

        Args:
            parameter: dotted name, for the messages.
            reference: an alias, a version, latest, an MLflow run id, models:/… or runs:/…, or a
                classifier's folder.

        Raises:
            ParameterError: when there is no such model, or it is not one of Thawline's.
        """
        folder = self._folder(parameter, reference)
        if folder is not None:
            classifier = load_classifier(folder, self._own)
            saved_at = (folder / DESCRIPTION_FILE).stat().st_mtime
            return self._compare_with_newer(Found(classifier, str(folder), saved_at), parameter)
        uri = self._uri(parameter, reference)
        try:
            classifier = _download(uri, lambda f: load_classifier(f / CLASSIFIER, self._own))
            found = Found(classifier, uri, _registered_at(uri))
        except (MlflowException, OSError, ValueError, ThawlineError) as error:
            raise ParameterError(
                f"{parameter}: '{reference}' ({uri}) cannot be loaded: {error} Give {_POSSIBLE}."
            ) from error
        return self._compare_with_newer(found, parameter)

    def register(
        self,
        uri: str | None,
        answers: dict[str, str],
        judge: Callable[[Champion | None], Verdict],
    ) -> dict[str, Any]:
        """Return what became of a logged model: its version, the champion's, and why.

        Every model becomes a version; the alias moves to it if `judge` says that it wins. What a
        registry refuses ends no run that has trained for hours.

        Args:
            uri: `models:/m-…`, or None where the model was not logged.
            answers: the model's label for each of its test images, by SHA-256; kept with it.
            judge: what compares the model with a champion; None is the first there is.
        """
        if self.name is None or uri is None:
            missing = "registry.name is null" if self.name is None else "no MLflow run is active"
            return {"registration_reason": f"not registered: {missing}"}
        try:
            _keep_answers(uri, answers)
            return self._register(self.name, uri, judge)
        except MlflowException as error:
            return {"registration_reason": f"not registered as '{self.name}': {error}"}

    def _compare_with_newer(self, found: Found, parameter: str) -> Found:
        """Return what was found; warn if a model that was saved later knows other classes."""
        known = {*found.classifier.class_names}
        for newest in (self._newest_version, self._newest_classifier):
            try:
                what, seconds, class_names, reference = newest(found)
            except LOOKUP_ERRORS as error:
                logger.debug("Cannot look up a newer model than %s: %r", found.name, error)
                continue
            is_newer = found.saved_at is not None and seconds > found.saved_at
            if is_newer and {*class_names} != known:
                logger.warning(
                    "%s is newer than %s and knows other classes (%s). To use it, set %s=%s.",
                    what,
                    found.name,
                    list_classes(class_names),
                    parameter,
                    reference,
                )
        return found

    @staticmethod
    def _newest_version(found: Found) -> tuple[str, float, list[str], str]:
        """Return the newest version of a registered model: name, seconds, classes, reference.

        Raises:
            LookupError: when the model is no registered one.
        """
        match = re.fullmatch(VERSION_URI, found.name)
        if not match:
            raise LookupError("no registered model")
        name = match["name"]
        (newest,) = mlflow.MlflowClient().search_model_versions(
            f"name={name!r}", max_results=1, order_by=["version_number DESC"]
        )
        number = str(newest.version)
        metadata = mlflow.models.get_model_info(f"models:/{name}/{number}").metadata or {}
        names = metadata.get("class_names", found.classifier.class_names)
        return f"Version {number} of '{name}'", newest.creation_timestamp / 1000, [*names], number

    def _newest_classifier(self, _: Found) -> tuple[str, float, list[str], str]:
        """Return the same of the project's newest classifier.

        Raises:
            LookupError: when there is none.
        """
        file = self._saved_classifiers()[-1]
        names = json.loads(file.read_text(encoding="utf-8"))["class_names"]
        return f"The classifier {file.parent}", file.stat().st_mtime, [*names], LATEST

    def _saved_classifiers(self) -> list[Path]:
        """Return the description files of the project's classifiers, the newest last."""
        return sorted(self._classifiers.glob(f"*/*/{DESCRIPTION_FILE}"))

    def _last_registered(self, parameter: str) -> str:
        """Return the name of the model that a run of this project registered last."""
        for file in sorted(self._registrations.glob(f"*/{self._registrations.name}"), reverse=True):
            result = json.loads(file.read_text(encoding="utf-8"))
            if "registered_version" in result:
                return str(result["registered_model"])
        raise ParameterError(
            f"{parameter}: no model of this project is registered yet. Train one with kedro run"
            " --pipeline=finetune, or name a registered model by registry.name."
        )

    def _register(
        self, name: str, uri: str, judge: Callable[[Champion | None], Verdict]
    ) -> dict[str, Any]:
        client = mlflow.MlflowClient()
        with self._lock():
            version = str(mlflow.register_model(uri, name).version)
        verdict = self._challenge(client, name, version, judge)
        outcome = "becomes champion" if verdict.wins else "does not become champion"
        reason = f"version {version} of '{name}' {outcome}: {verdict.reason}"
        result = {
            "registered_model": name,
            "registered_version": version,
            "champion_version": self._champion(client, name),
            "registration_reason": reason,
        }
        if verdict.images:
            result["compared_images"] = str(verdict.images)
            result["accuracy_difference"] = f"{verdict.difference:.6g}"
            result["p_value"] = f"{verdict.p_value:.6g}"
        client.update_model_version(name, version, description=reason)
        for tag, text in result.items():
            client.set_model_version_tag(name, version, tag, text)
        return result

    def _challenge(
        self,
        client: mlflow.MlflowClient,
        name: str,
        version: str,
        judge: Callable[[Champion | None], Verdict],
    ) -> Verdict:
        """Return the verdict on a version against whoever is champion when the alias is decided.

        The comparison may take minutes, so it is made before the lock is taken, and made again if
        the champion is another one by then. Between projects that share a server there is no lock:
        there, the last look after the move finds most of those who came in between.
        """
        while True:
            champion = self._champion(client, name)
            verdict = judge(_load_champion(name, champion, self._own) if champion else None)
            with self._lock():
                if self._champion(client, name) != champion:
                    continue
                if verdict.wins:
                    client.set_registered_model_alias(name, ALIAS, version)
            if not verdict.wins or self._champion(client, name) == version:
                return verdict

    @staticmethod
    def _champion(client: mlflow.MlflowClient, name: str) -> str | None:
        try:
            return str(client.get_model_version_by_alias(name, ALIAS).version)
        except MlflowException as error:
            if error.error_code in ABSENT:
                return None
            raise

    def _lock(self) -> FileLock:
        self._classifiers.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(self._classifiers.parent / "registry.lock")

    def _folder(self, parameter: str, reference: str) -> Path | None:
        """Return the folder of a classifier, if it is one that is meant."""
        if reference == LATEST:
            versions = self._saved_classifiers()
            if not versions:
                raise ParameterError(
                    f"{parameter}: there is no classifier in {self._classifiers} yet. Train one"
                    " with kedro run --pipeline=finetune"
                )
            return versions[-1].parent
        folder = (self._base / Path(reference).expanduser()).resolve()
        inner = folder / self._classifiers.name  # of a version in data/06_models/classifier
        return inner if inner.is_dir() else folder if folder.is_dir() else None

    def _uri(self, parameter: str, reference: str) -> str:
        """Return the MLflow URI of a model that is not a folder."""
        if reference.startswith(("models:/", "runs:/")):
            return reference
        if re.fullmatch("[0-9a-f]{32}", reference):
            return f"runs:/{reference}/{CLASSIFIER}"
        if self.name is None:
            raise ParameterError(
                f"{parameter}: '{reference}' is looked for in MLflow's registry, but registry.name"
                " is null. Set it, or give latest, a run id, models:/… or a classifier's folder."
            )
        name = self._last_registered(parameter) if self.name == AUTO else self.name
        if reference.isdecimal():
            return f"models:/{name}/{reference}"
        try:
            found = mlflow.MlflowClient().get_model_version_by_alias(name, reference)
        except MlflowException as error:
            first = " Train one with kedro run --pipeline=finetune" if reference == ALIAS else ""
            raise ParameterError(
                f"{parameter}: no version of '{name}' has the alias '{reference}', nor is"
                f" '{reference}' a folder.{first or ' Give ' + _POSSIBLE}."
            ) from error
        return f"models:/{name}/{found.version}"


OpenRegistry = Callable[[str | None, ModelOptions], Registry]


class RegistryDataset(ResourceDataset[OpenRegistry]):
    """Loads a function from `registry.name` and the run's model options to the `Registry`."""

    def __init__(
        self,
        filepath: str,
        path: str,
        registrations: str,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        """Keep where things are.

        Args:
            filepath: folder of the project's classifiers; Kedro makes it absolute.
            path: what relative folders are relative to; Kedro makes it absolute.
            registrations: folder of the catalog entry `registration`, relative to `path`.
            metadata: of the entry.
        """
        self._filepath, self._path, self.metadata = Path(filepath), Path(path), metadata
        self._registrations = Path(path, registrations)

    def load(self) -> OpenRegistry:
        """Return `Registry` with its folders filled in."""
        return partial(
            Registry,
            classifiers=self._filepath,
            registrations=self._registrations,
            base=self._path,
        )

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "path": str(self._path)}


_POSSIBLE = (
    f"{ALIAS} or another alias, a version number, {LATEST}, the id of an MLflow run of finetune,"
    " models:/…, or a classifier's folder"
)


def _load_champion(name: str, version: str, own: ModelOptions) -> Champion:
    """Return the champion, or what keeps it from being compared with."""

    def read(folder: Path) -> Champion:
        classifier = load_classifier(folder / CLASSIFIER, own)
        seen = classifier.seen or read_seen(folder)  # where earlier versions kept it
        file = folder / ANSWERS_FILE
        answers = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return Champion(version, classifier, seen, answers)

    try:
        return _download(f"models:/{name}/{version}", read)
    except TrackingError:  # nothing is wrong with the champion
        raise
    except (MlflowException, OSError, ValueError, ThawlineError) as error:
        return Champion(version, problem=str(error))


def _registered_at(uri: str) -> float | None:
    """Return when a version of a registered model was made, in seconds since 1970."""
    match = re.fullmatch(VERSION_URI, uri)
    if not match:
        return None
    version = mlflow.MlflowClient().get_model_version(match["name"], match["version"])
    return float(version.creation_timestamp / 1000)


def _download(uri: str, read: Callable[[Path], Loaded]) -> Loaded:
    """Return what `read` makes of the artifacts of a logged model."""
    with tempfile.TemporaryDirectory() as temporary:
        return read(Path(mlflow.artifacts.download_artifacts(uri, dst_path=temporary), ARTIFACTS))


def _keep_answers(uri: str, answers: dict[str, str]) -> None:
    """Put a model's answers beside it: whoever challenges it on the same images need not ask."""
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary, ANSWERS_FILE)
        file.write_text(json.dumps(answers), encoding="utf-8")
        model_id = uri.removeprefix("models:/")
        mlflow.MlflowClient().log_model_artifact(model_id, str(file), ARTIFACTS)
