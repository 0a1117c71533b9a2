"""Tables of predictions: of a split, with labels, and of any files."""

import os
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from thawline.data.decoding import became_unreadable, show_progress
from thawline.data.splitting import class_names
from thawline.errors import DataError
from thawline.evaluation.inference import PredictedBatch, answer, predict_batches
from thawline.evaluation.prediction_sets import draw_uniform
from thawline.networks.classifier import Classifier
from thawline.options import TrainingOptions, Tta
from thawline.thaw.device import make_accelerator

PROBABILITY = "probability_"  # + class name: the columns of a split's predictions


def predict_split(
    classifier: Classifier,
    splits: pd.DataFrame,
    split: str,
    batch_size: int,
    training: TrainingOptions,
    tta: Tta = "none",
) -> pd.DataFrame:
    """Predict a split and return path, label, prediction, group (if any) and all probabilities.

    Further columns are distance from the training images, if that is known, and uniform, a number
    from 0 to 1 of each image for its prediction set.

    Raises:
        DataError: if the splits have other classes than the classifier, or an image is unreadable.
    """
    names = class_names(splits)
    if names != classifier.class_names:
        raise DataError(
            f"The classifier knows the classes {', '.join(classifier.class_names)}, the splits have"
            f" {', '.join(names)}. Load the splits of the classifier's own version."
        )
    rows = splits[splits["split"] == split].reset_index(drop=True)
    paths = rows["path"].tolist()
    title = f"Predicting the {split} split"
    remaining, tables = iter(paths), []
    for batch in _predict(classifier, paths, batch_size, training, title, tta):
        for problem, path in zip(batch.problems, remaining, strict=False):
            if problem:
                raise became_unreadable(path, problem)
        uniform = draw_uniform(batch.views.numpy())
        tables.append((batch.probabilities, batch.distances, torch.from_numpy(uniform)))
    probabilities, distances, uniform = (torch.cat(c).numpy() for c in zip(*tables, strict=True))
    known = classifier.calibration.reference is not None
    return tabulate(rows, names, probabilities, distances if known else None, uniform)


def tabulate(
    rows: pd.DataFrame,
    names: Sequence[str],
    probabilities: np.ndarray,
    distances: np.ndarray | None,
    uniform: np.ndarray,
) -> pd.DataFrame:
    """Return the table of `predict_split` for rows of the splits and their probabilities (N, C)."""
    predictions = rows[["path", "label"]].copy()
    predictions["prediction"] = [names[idx] for idx in probabilities.argmax(axis=1)]
    if "group" in rows:
        predictions["group"] = rows["group"]
    if distances is not None:
        predictions["distance"] = distances
    predictions["uniform"] = uniform
    return predictions.join(pd.DataFrame(probabilities, columns=[PROBABILITY + n for n in names]))


def predict_files(
    classifier: Classifier,
    paths: Sequence[str],
    batch_size: int,
    top_k: int,
    training: TrainingOptions,
    tta: Tta = "none",
    refuse: bool = True,
) -> pd.DataFrame:
    """Predict files, images or not, and return one row per file.

    Returns:
        path; label and probability (0 to 1); label_2, probability_2 and so on up to `top_k`; set,
        distance and reason, see `inference.answer`;
        problem: why the file cannot be read, in which case the others are empty, or else empty.
    """
    tables = []
    for batch in _predict(classifier, paths, batch_size, training, "Predicting", tta):
        table = answer(batch, classifier, top_k, refuse)
        problem = pd.Series(batch.problems, dtype="str").replace("", None)
        tables.append(table.where(problem.isna()).assign(problem=problem))
    predictions = pd.concat(tables, ignore_index=True)
    # With bytes that are no UTF-8 escaped: Parquet takes no others.
    readable = [os.fsencode(path).decode("utf-8", "backslashreplace") for path in paths]
    predictions.insert(0, "path", readable)
    return predictions


def probability_columns(predictions: pd.DataFrame) -> dict[str, str]:
    """Return the names of the classes, in their order, each with that of its column."""
    columns = [name for name in predictions.columns.astype(str) if name.startswith(PROBABILITY)]
    return {name.removeprefix(PROBABILITY): name for name in columns}


def as_arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities (N, C), target class indices (N,) and whether each is right (N,)."""
    columns = probability_columns(predictions)
    index = {name: idx for idx, name in enumerate(columns)}
    targets = predictions["label"].map(index).to_numpy(dtype=np.int64)
    correct = (predictions["label"] == predictions["prediction"]).to_numpy(dtype=bool)
    return predictions[[*columns.values()]].to_numpy(), targets, correct


def worst_first(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions of a split from the most confident mistake to the surest right one.

    Returns:
        path, label, prediction, confidence (0 to 1) and correct.
    """
    probabilities, _, correct = as_arrays(predictions)
    confidence = probabilities.max(axis=1)
    rows = predictions[["path", "label", "prediction"]]
    rows = rows.assign(confidence=confidence, correct=correct)
    return rows.iloc[np.lexsort([np.where(correct, confidence, -confidence), correct])]


def _predict(
    classifier: Classifier,
    paths: Sequence[str],
    size: int,
    training: TrainingOptions,
    title: str,
    tta: Tta,
) -> Iterable[PredictedBatch]:
    """Predict batches of files with a progress bar."""
    batches = predict_batches(classifier, paths, size, make_accelerator(training).device, tta)
    return show_progress(batches, title, -(-len(paths) // size))
