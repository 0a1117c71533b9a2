"""Compute test metrics from the predictions of a split."""

import numpy as np
import pandas as pd
from sklearn.metrics import f1_score, precision_recall_fscore_support

from thawline.evaluation.calibration import log_likelihood
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
    probabilities, targets, correct = as_arrays(predictions)
    labels, predicted = predictions["label"], predictions["prediction"]
    low, high = accuracy_interval(correct, predictions.get("group"))
    k = min(options.top_k, len(names))
    first_k = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    metrics = {
        "test_accuracy": float(correct.mean()),
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        f"test_top{k}_accuracy": float((first_k == targets[:, None]).any(axis=1).mean()),
        "test_macro_f1": float(f1_score(labels, predicted, average="macro", zero_division=0)),
        "test_loss": float(-log_likelihood(predictions).mean()),
        "test_images": float(len(targets)),
    }
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=names, zero_division=0
    )
    per_class = pd.DataFrame(
        {"label": names, "images": images, "precision": precision, "recall": recall, "f1": f1}
    )
    return metrics, per_class, count_confusion(predictions)


def count_confusion(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return counts, one row per true and one column per predicted class."""
    names = [*probability_columns(predictions)]
    counts = pd.crosstab(predictions["label"], predictions["prediction"])
    return counts.reindex(index=names, columns=names, fill_value=0)
