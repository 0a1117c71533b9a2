"""A classifier over files that nobody has looked at: what cannot be read becomes a row as well."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pandas as pd
from rich.progress import track

from thawline.classifier import Classifier, rank
from thawline.evaluation import make_infer
from thawline.loading import View, ViewLoader
from thawline.options import TrainingOptions, TransformOptions
from thawline.transforms import Transforms


def predict_files(
    classifier: Classifier,
    paths: Sequence[str],
    batch_size: int,
    top_k: int,
    training: TrainingOptions,
) -> pd.DataFrame:
    """Return a table with a row for each file, in their order.

    Computed in fp32 with the classifier's own preprocessing, as `evaluation.predict_split` does.
    Only a few batches of images are in memory at a time.

    Args:
        classifier: its network is moved to the device of `training`.
        paths: files, images or not.
        batch_size: images a step.
        top_k: classes a row, at most those of the classifier.
        training: device and number of decoding processes.

    Returns:
        path; label and probability (0 to 1); label_2, probability_2 and so on up to `top_k`;
        problem: why the file cannot be read, in which case the others are empty, or else empty.
    """
    infer = make_infer(classifier, training)
    transforms = Transforms(classifier.preprocessing, TransformOptions())
    loader = ViewLoader(transforms, training.workers, checked=True)
    views = [View(path) for path in paths]
    batches = [views[start : start + batch_size] for start in range(0, len(views), batch_size)]
    tables: list[pd.DataFrame] = []
    for images, problems in track(loader.load(batches), "Predicting", len(batches), transient=True):
        table = rank(infer(images), classifier.class_names, top_k)
        problem = pd.Series(problems, dtype="str").replace("", None)
        tables.append(table.where(problem.isna()).assign(problem=problem))
    answers = pd.concat(tables, ignore_index=True)
    answers.insert(0, "path", [_printable(path) for path in paths])
    return answers


def _printable(path: str) -> str:
    """Return a path in which bytes that are no UTF-8 are escaped: Parquet takes no others."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
