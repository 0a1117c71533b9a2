"""Compute test metrics from the predictions of a split."""

import pandas as pd
import torch
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_f1_score,
    multiclass_precision,
    multiclass_recall,
)

from thawline.evaluation.predictions import as_arrays, probability_columns
from thawline.evaluation.significance import accuracy_interval
from thawline.options import EvaluationOptions


def compute_metrics(
    predictions: pd.DataFrame, options: EvaluationOptions
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """Return the metrics, the metrics per class and the confusion matrix of a `predict_split`.

    Returns:
        metrics: test_accuracy with its 95 % interval (test_accuracy_low and _high,
            `significance.accuracy_interval`), test_top{k}_accuracy, test_macro_f1, test_loss (mean
            cross-entropy in nats), test_images.
        per_class: label, images, precision, recall and f1, one row per class.
        confusion: `count_confusion`.
    """
    names = [*probability_columns(predictions)]
    probabilities, targets, correct = (torch.tensor(array) for array in as_arrays(predictions))
    predicted = torch.tensor([names.index(label) for label in predictions["prediction"]])
    count = len(names)
    k = min(options.top_k, count)
    low, high = accuracy_interval(correct.numpy(), predictions.get("group"))
    of_targets = probabilities.gather(1, targets[:, None])
    top_k_accuracy = multiclass_accuracy(probabilities, targets, count, average="micro", top_k=k)
    metrics = {
        "test_accuracy": correct.double().mean().item(),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        f"test_top{k}_accuracy": top_k_accuracy.item(),
        "test_macro_f1": multiclass_f1_score(predicted, targets, count, average="macro").item(),
        "test_loss": -of_targets.clamp_min(torch.finfo(torch.float32).tiny).log().mean().item(),
        "test_images": float(len(targets)),
    }
    confusion = count_confusion(predictions)
    measures = {
        "precision": multiclass_precision,
        "recall": multiclass_recall,
        "f1": multiclass_f1_score,
    }
    by_class = {
        name: measure(predicted, targets, count, average="none").numpy()
        for name, measure in measures.items()
    }
    images = confusion.sum(axis=1).to_numpy()
    return metrics, pd.DataFrame({"label": names, "images": images, **by_class}), confusion


def count_confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return counts, one row per true and one column per predicted class."""
    names = [*probability_columns(predictions)]
    counts = pd.crosstab(predictions["label"], predictions["prediction"])
    return counts.reindex(index=names, columns=names, fill_value=0)
