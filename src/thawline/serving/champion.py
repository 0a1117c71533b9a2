"""Register a model, and make it the champion if it is significantly better than the last one."""

import logging
from collections.abc import Container, Mapping
from typing import Any, NamedTuple

import mlflow
import pandas as pd
from filelock import FileLock
from mlflow.exceptions import MlflowException

from thawline.data.decoding import hash_files
from thawline.errors import first_names
from thawline.evaluation.predictions import predict_files
from thawline.evaluation.significance import SIGNIFICANT, paired_test
from thawline.networks.classifier import Classifier
from thawline.options import AUTO, Parameters
from thawline.serving import registry
from thawline.serving.registry import CHAMPION, MAX_NAMES_IN_MESSAGE, ProjectFolders

logger = logging.getLogger(__name__)

MIN_SHARED_IMAGES = 2  # images that two models can be compared on


class Verdict(NamedTuple):
    """Whether the candidate becomes champion, and why."""

    wins: bool
    reason: str
    # if they were compared: compared_images, accuracy_difference (-1 to 1) and p_value
    figures: Mapping[str, str] = {}


def register_model(
    parameters: Parameters,
    uri: str | None,
    predictions: pd.DataFrame,
    classifier: Classifier,
    folders: ProjectFolders,
    corrected: Container[str] = (),
) -> dict[str, Any]:
    """Register a logged model as a new version, and move the alias `champion` to it if it wins.

    A registry that refuses the model does not end the run, which may have trained for hours. `uri`
    is `models:/m-…`, None if the model was not logged; `predictions` is the table of
    `predict_split` for its test images. Those whose paths are in `corrected` have a new label, and
    do not count in the comparison.

    Returns:
        registered_model, registered_version, champion_version, registration_reason, and, if both
        were compared, compared_images, accuracy_difference and p_value; next_prediction.
    """
    name = parameters.registry.name
    if name == AUTO:
        name = registry.default_name(parameters.dataset.root, classifier.class_names)
    if name is None or uri is None:
        problem = "no MLflow run is active" if name else "registry.name is null"
        result = {"registration_reason": f"not registered: {problem}"}
    else:
        touched = [path in corrected for path in predictions["path"]]
        hashes = hash_files(predictions["path"].tolist())
        rows = predictions.assign(sha256=hashes, corrected=touched)
        try:
            result = _register(uri, name, classifier, rows, parameters, folders)
        except MlflowException as error:
            result = {"registration_reason": f"not registered as '{name}': {error}"}
    level = logging.DEBUG if "registered_version" in result else logging.WARNING
    logger.log(level, "Registry: %s", result["registration_reason"])
    classes = registry.list_classes(classifier.class_names)
    return result | {"next_prediction": _next_prediction(result, classes)}


def compare_with_champion(
    classifier: Classifier,
    rows: pd.DataFrame,
    name: str,
    version: str | None,
    parameters: Parameters,
) -> Verdict:
    """Test whether a candidate beats the champion on test images that neither has seen.

    An image that either was trained or validated on, by content, does not count. Images of one
    group are tested together. Without a champion, the candidate wins. `rows` has path, sha256,
    label, prediction and perhaps group of the candidate's test images; `version` is the champion's.
    """
    if version is None:
        return Verdict(True, "it is the first version")
    refused = f"not comparable: the champion (version {version})"
    try:
        champion, stored = registry.load_logged(f"models:/{name}/{version}", parameters.model)
    except registry.LOAD_ERRORS as error:
        return Verdict(
            False,
            f"{refused} cannot be used ({error}). In MLflow's UI, move the alias to a version that"
            " can",
        )
    known, own = {*champion.class_names}, {*classifier.class_names}
    if known != own:
        return Verdict(
            False,
            f"{refused} has the classes {_differing_first(known, own)}, the candidate"
            f" {_differing_first(own, known)}. Give models with other classes a name of their own"
            " (registry.name), or move the alias in MLflow's UI",
        )
    unseen = rows[~rows["sha256"].isin(champion.seen | classifier.seen)]
    if len(unseen) < MIN_SHARED_IMAGES:
        return Verdict(
            False,
            f"{refused} or the candidate was trained or validated on {len(rows) - len(unseen)} of"
            f" {len(rows)} test images. Keep seed and data of its run, so that both have the same"
            " test images",
        )
    options = parameters.evaluation
    stored = stored if options.tta == "none" else {}  # both models have the same augmentation
    labels = unseen["sha256"].map(stored).astype("object")
    new = labels.isna()
    if paths := unseen.loc[new, "path"].tolist():
        how = options.batch_size, 1, parameters.training, options.tta
        predicted = predict_files(champion, paths, *how, refuse=False)
        labels[new] = predicted["label"].to_numpy()
    return _test_difference(unseen, labels, version)


def _differing_first(names: set[str], others: set[str]) -> str:
    """Return some names, beginning with those that are not among the others."""
    ordered = sorted(names, key=lambda name: (name in others, name))
    return first_names(ordered, MAX_NAMES_IN_MESSAGE)


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
    figures = {
        "compared_images": str(len(unseen)),
        "accuracy_difference": f"{test.difference:.6g}",
        "p_value": f"{test.p_value:.6g}",
    }
    return Verdict(wins, reason, figures)


def _register(
    uri: str,
    name: str,
    classifier: Classifier,
    rows: pd.DataFrame,
    parameters: Parameters,
    folders: ProjectFolders,
) -> dict[str, Any]:
    """Register a version, move the alias if it wins, and describe the outcome in the registry.

    A comparison may take minutes, so the lock is taken after it; if the champion has changed by
    then, compare again. Projects that share a server have no common lock: a last look after the
    move finds most runs that moved the alias in between.
    """
    client = mlflow.MlflowClient()
    if parameters.evaluation.tta == "none":
        registry.store_labels(uri, dict(zip(rows["sha256"], rows["prediction"], strict=True)))
    folders.classifiers.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folders.classifiers.parent / "registry.lock")
    with lock:
        version = str(mlflow.register_model(uri, name).version)
    while True:
        current = registry.find_version(name, CHAMPION)
        untouched = rows[~rows["corrected"]]
        verdict = compare_with_champion(classifier, untouched, name, current, parameters)
        with lock:
            if registry.find_version(name, CHAMPION) != current:
                continue
            if verdict.wins:
                client.set_registered_model_alias(name, CHAMPION, version)
        if not verdict.wins or registry.find_version(name, CHAMPION) == version:
            break
    outcome = "becomes champion" if verdict.wins else "does not become champion"
    reason = f"version {version} of '{name}' {outcome}: {verdict.reason}"
    accuracy = (rows["prediction"] == rows["label"]).mean()
    about = (
        f"{accuracy:.1%} of {len(rows)} test images of {parameters.dataset.root} are right"
        f" ({registry.list_classes(classifier.class_names)}). {reason}. The report is among the"
        " artifacts of its run."
    )
    result = {
        "registered_model": name,
        "registered_version": version,
        "champion_version": registry.find_version(name, CHAMPION),
        "registration_reason": reason,
        **verdict.figures,
    }
    try:
        client.update_model_version(name, version, description=about)
        for tag, text in result.items():
            client.set_model_version_tag(name, version, tag, text)
    except MlflowException as error:  # the decision stands
        logger.warning("Version %s of '%s' could not be described: %s", version, name, error)
    return result


def _next_prediction(result: Mapping[str, Any], classes: str) -> str:
    """Return the command that predicts after a registration, and by which model."""
    command = "thawline predict IMAGES"
    if "registered_version" not in result:
        return f"{command} --model latest: this model, which is not registered ({classes})"
    name, version = result["registered_model"], result["registered_version"]
    if version == result["champion_version"]:
        return f"{command}: this model, version {version} of '{name}' ({classes})"
    return (
        f"{command}: version {result['champion_version']} of '{name}', the champion, and with"
        f" --model {version} this model ({classes})"
    )
