"""Measure a classifier on images that had no part in its making."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from thawline.data.loading import View, ViewLoader
from thawline.data.splitting import class_names
from thawline.data.transforms import Transforms, normalize
from thawline.errors import DataError
from thawline.evaluation.significance import accuracy_interval
from thawline.networks.classifier import Classifier, probabilities
from thawline.options import EvaluationOptions, TrainingOptions, TransformOptions
from thawline.thaw.device import make_accelerator

PROBABILITY = "probability_"  # + class name: the columns of the predictions table


def make_infer(classifier: Classifier, training: TrainingOptions) -> Callable[[Tensor], Tensor]:
    """Return a function from views (N, 3, size, size) uint8 to probabilities (N, C) on the CPU.

    It computes in fp32 on the device of `training`, to which it moves the network.
    """
    device = make_accelerator(training).device
    network = classifier.network.eval().to(device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def infer(views: Tensor) -> Tensor:
        images = normalize(views.to(device, non_blocking=True), classifier.preprocessing)
        return probabilities(network(images)).cpu()

    return infer


def predict_split(
    classifier: Classifier,
    splits: pd.DataFrame,
    split: str,
    batch_size: int,
    training: TrainingOptions,
) -> pd.DataFrame:
    """Return path, label, prediction and a probability (0 to 1) for each class, one row per image.

    A column `group` of the splits comes after the prediction. Computed in fp32 with the
    classifier's own preprocessing, as in use later.

    Raises:
        DataError: when the classifier was trained for other classes than those of the table.
    """
    names = class_names(splits)
    if names != classifier.class_names:
        raise DataError(
            f"The classifier knows the classes {', '.join(classifier.class_names)}, the splits have"
            f" {', '.join(names)}. Load the splits of the classifier's own version."
        )
    preprocessing = classifier.preprocessing
    infer = make_infer(classifier, training)
    pin_memory = next(classifier.network.parameters()).is_cuda
    rows = splits[splits["split"] == split]
    views = [View(path) for path in rows["path"]]
    batches = [views[start : start + batch_size] for start in range(0, len(views), batch_size)]
    transforms = Transforms(preprocessing, TransformOptions())
    loader = ViewLoader(transforms, training.num_workers, pin_memory)
    decoded = track(
        loader.load(batches), f"Predicting the {split} split", len(batches), transient=True
    )
    table = torch.cat([infer(views) for views in decoded]).numpy()
    predictions = pd.DataFrame({"path": rows["path"], "label": rows["label"]}, index=rows.index)
    predictions["prediction"] = [names[idx] for idx in table.argmax(axis=1)]
    if "group" in rows:
        predictions["group"] = rows["group"]
    columns = [PROBABILITY + name for name in names]
    return predictions.join(pd.DataFrame(table, rows.index, columns)).reset_index(drop=True)


def score(
    predictions: pd.DataFrame, options: EvaluationOptions
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Return the metrics, those of each class, and the confusion matrix of the predictions.

    Args:
        predictions: the table of `predict_split`.
        options: k of the top-k accuracy.

    Returns:
        metrics: test_accuracy with the limits of its 95 % interval (test_accuracy_low and _high,
            `significance.accuracy_interval`), test_top{k}_accuracy, test_macro_f1, test_loss (mean
            cross-entropy in nats), test_images.
        per_class: label, images, precision, recall, f1; a row a class.
        confusion: counts, a row a true and a column a predicted class.
    """
    names = [name.removeprefix(PROBABILITY) for name in probability_columns(predictions)]
    table, truth, right = (torch.tensor(array) for array in as_arrays(predictions))
    guess = torch.tensor([names.index(label) for label in predictions["prediction"]])
    count = len(names)
    k = min(options.top_k, count)
    low, high = accuracy_interval(right.numpy(), predictions.get("group"))
    chosen = table.gather(1, truth[:, None]).clamp_min(torch.finfo(torch.float32).tiny)
    metrics = {
        "test_accuracy": right.double().mean().item(),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        f"test_top{k}_accuracy": multiclass_accuracy(
            table, truth, count, average="micro", top_k=k
        ).item(),
        "test_macro_f1": multiclass_f1_score(guess, truth, count, average="macro").item(),
        "test_loss": -chosen.log().mean().item(),
        "test_images": float(len(truth)),
    }
    each: dict[str, Any] = {"num_classes": count, "average": "none"}
    per_class = pd.DataFrame(
        {
            "label": names,
            "images": torch.bincount(truth, minlength=count).numpy(),
            "precision": multiclass_precision(guess, truth, **each).numpy(),
            "recall": multiclass_recall(guess, truth, **each).numpy(),
            "f1": multiclass_f1_score(guess, truth, **each).numpy(),
        }
    )
    confusion = multiclass_confusion_matrix(guess, truth, count).numpy()
    return metrics, per_class, pd.DataFrame(confusion, index=names, columns=names)


def probability_columns(predictions: pd.DataFrame) -> list[str]:
    """Return the names of the columns that hold probabilities, in the order of the classes."""
    return [name for name in predictions.columns.astype(str) if name.startswith(PROBABILITY)]


def as_arrays(predictions: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities (N, C), true classes (N) by index, and whether each is right (N)."""
    columns = probability_columns(predictions)
    index = {name.removeprefix(PROBABILITY): idx for idx, name in enumerate(columns)}
    truth = predictions["label"].map(index).to_numpy(dtype=np.int64)
    right = (predictions["label"] == predictions["prediction"]).to_numpy(dtype=bool)
    return predictions[columns].to_numpy(), truth, right


def worst_mistakes(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the wrong predictions with their `confidence` (0 to 1), the most confident first.

    Args:
        predictions: a table of `predict_split`.
    """
    table, _, right = as_arrays(predictions)
    rows = predictions[["path", "label", "prediction"]].assign(confidence=table.max(axis=1))
    return rows[~right].sort_values("confidence", ascending=False, kind="stable")
