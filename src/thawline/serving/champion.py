"""Decide whether a new model is better than the champion, by more than chance."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from thawline.data.sources import LIBRARIES, TABLES
from thawline.evaluation.predictions import predict_files
from thawline.evaluation.significance import SIGNIFICANT, paired_test
from thawline.networks.classifier import Classifier
from thawline.options import TrainingOptions

MIN_SHARED_IMAGES = 2  # images that two models can be compared on
MAX_NAMED_CLASSES = 5  # in a message


class Champion(NamedTuple):
    """The model to beat.

    Attributes:
        version: of the registered model.
        classifier: None where it cannot be compared with, for the reason in `problem`.
        seen: SHA-256 of the images that it was trained or validated on.
        answers: its label for each of its own test images, by SHA-256.
        problem: why it cannot be compared with.
    """

    version: str
    classifier: Classifier | None = None
    seen: frozenset[str] = frozenset()
    answers: Mapping[str, str] = {}
    problem: str = ""


class Verdict(NamedTuple):
    """Whether the candidate becomes champion, and why.

    Attributes:
        wins: whether it does.
        reason: a sentence.
        images: on how many both were compared.
        difference: accuracy of the candidate minus that of the champion on these, -1 to 1.
        p_value: how likely a difference so large is if both are equally good.
    """

    wins: bool
    reason: str
    images: int = 0
    difference: float | None = None
    p_value: float | None = None


def model_name(root: str, class_names: Sequence[str]) -> str:
    """Return the name of the registered model of a data set: its own name, and a hash of classes.

    So models that know other classes never share a name, and a champion.

    Args:
        root: `dataset.root`.
        class_names: in any order.
    """
    library, _, name = root.partition(":")
    if library not in LIBRARIES:
        path = PurePath(root)
        name = path.stem if path.suffix.lower() in TABLES else path.name
    readable = re.sub(r"\W+", "-", name).strip("-") or "images"
    digest = hashlib.sha256("\n".join(sorted(class_names)).encode()).hexdigest()
    return f"{readable}-{digest[:6]}"


def list_classes(names: Collection[str]) -> str:
    """Return the number of classes and the first names."""
    named = sorted(names)[:MAX_NAMED_CLASSES]
    more = ", …" * (len(names) > len(named))
    return f"{len(names)} classes: {', '.join(named)}{more}"


def next_prediction(result: Mapping[str, Any], class_names: Collection[str]) -> str:
    """Return a sentence on which model `kedro run --pipeline=predict` uses from now on.

    Args:
        result: what became of the model in the registry.
        class_names: of the model.
    """
    classes = list_classes(class_names)
    if "registered_version" not in result:
        return (
            "This model is not registered: kedro run --pipeline=predict uses it with"
            f" --params=predict.model=latest ({classes})."
        )
    name, version = result["registered_model"], result["registered_version"]
    champion = result["champion_version"]
    if champion == version:
        return (
            f"kedro run --pipeline=predict now uses this model, version {version} of '{name}'"
            f" ({classes})."
        )
    return (
        f"kedro run --pipeline=predict uses version {champion} of '{name}', the champion; this"
        f" model is version {version}: --params=predict.model={version} ({classes})."
    )


def judge(
    predictions: pd.DataFrame,
    hashes: Sequence[str],
    seen: Collection[str],
    champion: Champion | None,
    batch_size: int,
    training: TrainingOptions,
) -> Verdict:
    """Return whether a candidate beats the champion on the candidate's test images.

    Images that either of the two was trained or validated on, by content, do not count: they would
    flatter it. Images of one group are tested together.

    Args:
        predictions: of the candidate, with path, label, prediction and perhaps group of its test
            images.
        hashes: SHA-256 of these images.
        seen: SHA-256 of the images that the candidate, or a classifier that its weights came from,
            was trained or validated on.
        champion: None where there is none yet.
        batch_size: images a step.
        training: what device it computes on.
    """
    if champion is None:
        return Verdict(True, "it is the first version")
    if problem := _not_comparable(champion, set(predictions["label"])):
        return Verdict(False, problem)
    unseen = predictions.assign(hash=hashes)
    unseen = unseen[~unseen["hash"].isin(champion.seen.union(seen))]
    if len(unseen) < MIN_SHARED_IMAGES:
        count = len(predictions) - len(unseen)
        return Verdict(
            False,
            f"not comparable: the champion (version {champion.version}) or the candidate was"
            f" trained or validated on {count} of {len(predictions)} test images. Keep seed and"
            " data of its run, so that both have the same test images",
        )
    answers = _ask(champion, unseen, batch_size, training)
    return _compare(
        (unseen["prediction"] == unseen["label"]).to_numpy(),
        (answers == unseen["label"]).to_numpy(),
        unseen.get("group"),
        champion.version,
    )


def _ask(
    champion: Champion, unseen: pd.DataFrame, batch_size: int, training: TrainingOptions
) -> pd.Series:
    """Return the champion's labels; those that it gave when it was tested itself are known."""
    assert champion.classifier is not None
    known = [champion.answers.get(one) for one in unseen["hash"]]
    answers = pd.Series(known, unseen.index, dtype="object")
    new = answers.isna()
    if new.any():
        paths = unseen.loc[new, "path"].tolist()
        table = predict_files(champion.classifier, paths, batch_size, 1, training)
        answers[new] = table["label"].to_numpy()
    return answers


def _compare(
    candidate: np.ndarray, champion: np.ndarray, groups: pd.Series | None, version: str
) -> Verdict:
    test = paired_test(candidate, champion, groups)
    images = f"{len(candidate)} images"
    if groups is not None and groups.nunique() < len(groups):
        images += f" of {groups.nunique()} groups"
    wins = test.difference > 0 and test.p_value < SIGNIFICANT
    if wins:
        conclusion = "which is better by more than chance"
    elif test.difference > 0:
        conclusion = "which may be luck"
    else:
        conclusion = "which is no better"
    reason = (
        f"test accuracy {candidate.mean():.4f} against {champion.mean():.4f} of the champion"
        f" (version {version}) on {images}, p = {test.p_value:.2g}: {conclusion}"
    )
    return Verdict(wins, reason, len(candidate), test.difference, test.p_value)


def _not_comparable(champion: Champion, classes: set[str]) -> str:
    """Return why the two cannot be compared and what to do, or nothing."""
    if champion.classifier is None:
        return (
            f"not comparable: the champion (version {champion.version}) cannot be used"
            f" ({champion.problem}). Move the alias by hand, in MLflow's UI, to a version that can"
        )
    known = set(champion.classifier.class_names)
    if known != classes:
        return (
            f"not comparable: the champion (version {champion.version}) knows the classes"
            f" {', '.join(sorted(known))}, the candidate {', '.join(sorted(classes))}. Give models"
            " for other classes a name of their own (registry.name), or move the alias by hand"
        )
    return ""
