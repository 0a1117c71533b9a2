"""Register a model, and make it the champion if it is significantly better than the last one."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.exceptions import MlflowException

from thawline.data.decoding import hash_files
from thawline.errors import ThawlineError
from thawline.evaluation.predictions import predict_files
from thawline.evaluation.significance import SIGNIFICANT, paired_test
from thawline.networks.classifier import Classifier, load_classifier, read_seen
from thawline.options import AUTO, ModelOptions, Parameters, TrainingOptions
from thawline.serving import registry
from thawline.serving.model_names import model_name, next_prediction
from thawline.serving.registry import CHAMPION, CLASSIFIER, ProjectFolders

MIN_SHARED_IMAGES = 2  # images that two models can be compared on


class Candidate(NamedTuple):
    """The model that challenges the champion."""

    classifier: Classifier
    predictions: pd.DataFrame  # path, sha256, label, prediction and perhaps group of test images


class Champion(NamedTuple):
    """The model to beat."""

    version: str
    classifier: Classifier | None = None  # None if it cannot be loaded
    seen: frozenset[str] = frozenset()  # SHA-256 of the images it was trained or validated on
    labels: Mapping[str, str] = {}  # its predictions for its own test images, by SHA-256
    problem: str = ""  # why it cannot be loaded


class Verdict(NamedTuple):
    """Whether the candidate becomes champion, and why."""

    wins: bool
    reason: str
    images: int = 0  # that both were compared on
    difference: float | None = None  # accuracy of the candidate minus the champion's, -1 to 1
    p_value: float | None = None


def register_model(
    uri: str | None,
    classifier: Classifier,
    predictions: pd.DataFrame,
    parameters: Parameters,
    folders: ProjectFolders,
) -> dict[str, Any]:
    """Register a logged model as a new version, and move the alias `champion` to it if it wins.

    A registry that refuses the model does not end the run, which may have trained for hours.

    Args:
        uri: `models:/m-…`, None if the model was not logged.
        classifier: the model.
        predictions: the table of `predict_split` for its test images.
        parameters: of the run.
        folders: the lock file lies beside the classifiers.

    Returns:
        registered_model, registered_version, champion_version, registration_reason, and, if both
        were compared, compared_images, accuracy_difference and p_value; next_prediction.
    """
    name = parameters.registry.name
    if name == AUTO:
        name = model_name(parameters.dataset.root, classifier.class_names)
    if name is None:
        result = {"registration_reason": "not registered: registry.name is null"}
    elif uri is None:
        result = {"registration_reason": "not registered: no MLflow run is active"}
    else:
        rows = predictions.assign(sha256=hash_files(predictions["path"].tolist()))
        try:
            result = _register(uri, name, Candidate(classifier, rows), parameters, folders)
        except MlflowException as error:
            result = {"registration_reason": f"not registered as '{name}': {error}"}
    return result | {"next_prediction": next_prediction(result, classifier.class_names)}


def compare_with_champion(
    candidate: Candidate, champion: Champion | None, batch_size: int, training: TrainingOptions
) -> Verdict:
    """Test whether a candidate beats the champion on test images that neither has seen.

    An image that either was trained or validated on, by content, does not count. Images of one
    group are tested together. Without a champion, the candidate wins.
    """
    if champion is None:
        return Verdict(True, "it is the first version")
    if problem := _not_comparable(champion, candidate.classifier.class_names):
        return Verdict(False, problem)
    predictions = candidate.predictions
    seen = champion.seen | candidate.classifier.seen
    unseen = predictions[~predictions["sha256"].isin(seen)]
    if len(unseen) < MIN_SHARED_IMAGES:
        count = len(predictions) - len(unseen)
        return Verdict(
            False,
            f"not comparable: the champion (version {champion.version}) or the candidate was"
            f" trained or validated on {count} of {len(predictions)} test images. Keep seed and"
            " data of its run, so that both have the same test images",
        )
    labels = _predict_as_champion(champion, unseen, batch_size, training)
    return _test_difference(unseen, labels, champion.version)


def _register(
    uri: str, name: str, candidate: Candidate, parameters: Parameters, folders: ProjectFolders
) -> dict[str, Any]:
    """Register a version, decide on the champion, and describe the outcome in the registry."""
    rows = candidate.predictions
    registry.store_labels(uri, dict(zip(rows["sha256"], rows["prediction"], strict=True)))
    folders.classifiers.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folders.classifiers.parent / "registry.lock")
    with lock:
        version = str(mlflow.register_model(uri, name).version)
    verdict = _challenge(name, version, candidate, parameters, lock)
    outcome = "becomes champion" if verdict.wins else "does not become champion"
    reason = f"version {version} of '{name}' {outcome}: {verdict.reason}"
    result: dict[str, Any] = {
        "registered_model": name,
        "registered_version": version,
        "champion_version": registry.find_version(name, CHAMPION),
        "registration_reason": reason,
    }
    if verdict.images:
        result["compared_images"] = str(verdict.images)
        result["accuracy_difference"] = f"{verdict.difference:.6g}"
        result["p_value"] = f"{verdict.p_value:.6g}"
    client = mlflow.MlflowClient()
    client.update_model_version(name, version, description=reason)
    for tag, text in result.items():
        client.set_model_version_tag(name, version, tag, text)
    return result


def _challenge(
    name: str, version: str, candidate: Candidate, parameters: Parameters, lock: FileLock
) -> Verdict:
    """Compare a version with the champion, and move the alias if it wins.

    A comparison may take minutes, so the lock is taken after it; if the champion has changed by
    then, compare again. Projects that share a server have no common lock: a last look after the
    move finds most runs that moved the alias in between.
    """
    batch_size = parameters.evaluation.batch_size
    while True:
        current = registry.find_version(name, CHAMPION)
        champion = _load_champion(name, current, parameters.model) if current else None
        verdict = compare_with_champion(candidate, champion, batch_size, parameters.training)
        with lock:
            if registry.find_version(name, CHAMPION) != current:
                continue
            if verdict.wins:
                mlflow.MlflowClient().set_registered_model_alias(name, CHAMPION, version)
        if not verdict.wins or registry.find_version(name, CHAMPION) == version:
            return verdict


def _load_champion(name: str, version: str, own: ModelOptions) -> Champion:
    """Return the champion, or why it cannot be loaded."""

    def read(artifacts: Path) -> Champion:
        classifier = load_classifier(artifacts / CLASSIFIER, own)
        seen = classifier.seen or read_seen(artifacts)  # where earlier versions kept it
        return Champion(version, classifier, seen, registry.load_labels(artifacts))

    try:
        return registry.read_artifacts(f"models:/{name}/{version}", read)
    except (MlflowException, OSError, ValueError, ThawlineError) as error:
        return Champion(version, problem=str(error))


def _not_comparable(champion: Champion, class_names: Collection[str]) -> str:
    """Return why the two cannot be compared and what to do, or nothing."""
    refused = f"not comparable: the champion (version {champion.version})"
    if champion.classifier is None:
        return (
            f"{refused} cannot be used ({champion.problem}). In MLflow's UI, move the alias to a"
            " version that can"
        )
    known, own = sorted(champion.classifier.class_names), sorted(class_names)
    if known != own:
        return (
            f"{refused} has the classes {', '.join(known)}, the candidate {', '.join(own)}. Give"
            " models with other classes a name of their own (registry.name), or move the alias in"
            " MLflow's UI"
        )
    return ""


def _predict_as_champion(
    champion: Champion, unseen: pd.DataFrame, batch_size: int, training: TrainingOptions
) -> pd.Series:
    """Return the champion's labels; for its own test images they are stored."""
    assert champion.classifier is not None
    labels = unseen["sha256"].map(champion.labels).astype("object")
    new = labels.isna()
    if paths := unseen.loc[new, "path"].tolist():
        predicted = predict_files(champion.classifier, paths, batch_size, 1, training)
        labels[new] = predicted["label"].to_numpy()
    return labels


def _test_difference(unseen: pd.DataFrame, labels: pd.Series, version: str) -> Verdict:
    """Return the verdict of the paired test; `labels` are the champion's."""
    candidate, champion = ((each == unseen["label"]) for each in (unseen["prediction"], labels))
    groups = unseen.get("group")
    test = paired_test(candidate.to_numpy(), champion.to_numpy(), groups)
    images = f"{len(unseen)} images"
    if groups is not None and groups.nunique() < len(groups):
        images += f" of {groups.nunique()} groups"
    wins = test.difference > 0 and test.p_value < SIGNIFICANT
    better = "significantly better" if wins else "better, but not significantly"
    conclusion = better if test.difference > 0 else "not better"
    reason = (
        f"test accuracy {candidate.mean():.4f}, champion (version {version})"
        f" {champion.mean():.4f}, on {images}, p = {test.p_value:.2g}: {conclusion}"
    )
    return Verdict(wins, reason, len(unseen), test.difference, test.p_value)
