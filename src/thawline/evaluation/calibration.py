"""Measure whether a classifier is right as often as its probabilities say, and correct them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from thawline.evaluation.predictions import as_arrays, probability_columns

BINS = 15  # of equal width from 0 to 1, as in Guo et al. 2017
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.02, 50.0  # temperatures that are looked at
# Standard deviation of the logarithm of temperatures before any image is seen: most networks need
# one between 0.6 and 1.6. Hundreds of images outweigh it; without it, a few dozen that are all
# classified correctly would say that the classifier is never wrong.
PRIOR = 0.5
RESAMPLES = 1000


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return confidence and accuracy (means, 0 to 1) and images of each bin that has images.

    The confidence is the probability of the predicted class.

    Args:
        predictions: a table of `predict_split`.
    """
    table, _, right = as_arrays(predictions)
    confidence = table.max(axis=1)
    rows = pd.DataFrame({"bin": _bins(confidence), "confidence": confidence, "right": right})
    means = rows.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("right", "mean"), images=("right", "size")
    )
    return means.reset_index(drop=True)


def calibration_error(bins: pd.DataFrame) -> float:
    """Return the expected calibration error, 0 (right as often as it says) to 1, of `reliability`.

    That is the mean distance between confidence and accuracy, weighed by images (Guo et al. 2017,
    arXiv:1706.04599). On few images it is above 0 by chance too.
    """
    distance = (bins["confidence"] - bins["accuracy"]).abs()
    return float(np.average(distance, weights=bins["images"]))


def error_by_chance(predictions: pd.DataFrame, seed: int) -> float:
    """Return the `calibration_error` to expect on so many images if every probability were true.

    The mean over resamples in which each image is right with the probability that is claimed. The
    images are drawn independently: chance gives more where the images of a group err together.

    Args:
        predictions: a table of `predict_split`.
        seed: of the resamples.
    """
    table, *_ = as_arrays(predictions)
    confidence = table.max(axis=1)
    bins, rng = _bins(confidence), np.random.default_rng(seed)
    total = 0.0
    for _ in range(RESAMPLES):  # one by one: all at once take 10 kB per image
        right = rng.random(len(confidence)) < confidence
        total += np.abs(np.bincount(bins, right - confidence)).sum()
    return float(total / RESAMPLES / len(confidence))


def fit_temperature(predictions: pd.DataFrame) -> float:
    """Return what to divide the logits by, so that the labels are likeliest (Guo et al. 2017).

    Above 1 the classifier is surer than it should be, below 1 less sure. It must be fitted on other
    images than those of the final figures; the fewer there are, the closer it stays to 1.

    Args:
        predictions: a table of `predict_split`.
    """
    table, truth, _ = as_arrays(predictions)
    logits = _logits(table)

    def loss(log_temperature: float) -> float:
        chosen = log_softmax(logits / np.exp(log_temperature), axis=1)
        likelihood = float(chosen[np.arange(len(truth)), truth].sum())
        return log_temperature**2 / (2 * PRIOR**2) - likelihood

    found = minimize_scalar(
        loss, bounds=np.log([MIN_TEMPERATURE, MAX_TEMPERATURE]), method="bounded"
    )
    return float(np.exp(found.x))


def with_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return the predictions with the probabilities of logits divided by a temperature.

    The predicted classes stay the same.
    """
    table, *_ = as_arrays(predictions)
    scaled = softmax(_logits(table) / temperature, axis=1)
    return predictions.assign(**dict(zip(probability_columns(predictions), scaled.T, strict=True)))


def _logits(table: np.ndarray) -> np.ndarray:
    return np.log(np.clip(table, np.finfo(np.float32).tiny, None))


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * BINS).astype(int), BINS - 1)
