"""Measure how well probabilities match accuracy, and correct them with a temperature.

Predictions are tables of `predict_split`.
"""

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from thawline.evaluation.predictions import as_arrays, probability_columns

BINS = 15  # of equal width from 0 to 1, as in Guo et al. 2017
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.02, 50.0
# Standard deviation of the prior of the log temperature: most networks need 0.6 to 1.6. Hundreds of
# images outweigh it; without it, a few dozen correct images would make the classifier certain.
PRIOR = 0.5
RESAMPLES = 1000


def reliability(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return mean confidence, accuracy (0 to 1) and number of images per bin that has images.

    The confidence is the probability of the predicted class.
    """
    probabilities, _, correct = as_arrays(predictions)
    confidence = probabilities.max(axis=1)
    rows = pd.DataFrame({"bin": _bins(confidence), "confidence": confidence, "correct": correct})
    means = rows.groupby("bin").agg(
        confidence=("confidence", "mean"), accuracy=("correct", "mean"), images=("correct", "size")
    )
    return means.reset_index(drop=True)


def calibration_error(predictions: pd.DataFrame) -> float:
    """Return the expected calibration error, from 0 to 1 (Guo et al. 2017, arXiv:1706.04599).

    On few images it is above 0 by chance too, see `error_by_chance`.
    """
    probabilities, targets, _ = as_arrays(predictions)
    # torchmetrics would count a confidence of exactly 1 in a bin of its own.
    inside = torch.tensor(probabilities).clamp(max=1 - 1e-7)
    error = multiclass_calibration_error(
        inside, torch.tensor(targets), probabilities.shape[1], BINS, norm="l1"
    )
    return error.item()


def error_by_chance(predictions: pd.DataFrame, seed: int) -> float:
    """Return the expected `calibration_error` on as many images if every probability were true.

    It is the mean over resamples in which each image is correct with the claimed probability.
    Images are drawn independently; where the images of a group err together, chance gives more.
    """
    probabilities, *_ = as_arrays(predictions)
    confidence = probabilities.max(axis=1)
    bins, rng = _bins(confidence), np.random.default_rng(seed)
    total = 0.0
    for _ in range(RESAMPLES):  # one by one: all at once take 10 kB per image
        correct = rng.random(len(confidence)) < confidence
        total += np.abs(np.bincount(bins, correct - confidence)).sum()
    return float(total / RESAMPLES / len(confidence))


def fit_temperature(predictions: pd.DataFrame) -> float:
    """Return the divisor of the logits that makes the labels most probable (Guo et al. 2017).

    Above 1, the classifier is overconfident. Fit it on other images than those of the final
    figures. The fewer there are, the closer it stays to 1.
    """
    probabilities, targets, _ = as_arrays(predictions)
    logits = _logits(probabilities)

    def loss(log_temperature: float) -> float:
        log_probabilities = log_softmax(logits / np.exp(log_temperature), axis=1)
        likelihood = float(log_probabilities[np.arange(len(targets)), targets].sum())
        return log_temperature**2 / (2 * PRIOR**2) - likelihood

    bounds = np.log([MIN_TEMPERATURE, MAX_TEMPERATURE])
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def with_temperature(predictions: pd.DataFrame, temperature: float) -> pd.DataFrame:
    """Return the predictions with all logits divided by a temperature; the classes stay."""
    probabilities, *_ = as_arrays(predictions)
    scaled = softmax(_logits(probabilities) / temperature, axis=1)
    columns = probability_columns(predictions).values()
    return predictions.assign(**dict(zip(columns, scaled.T, strict=True)))


def _logits(probabilities: np.ndarray) -> np.ndarray:
    """Return log-probabilities, which serve as logits."""
    return np.log(np.clip(probabilities, np.finfo(np.float32).tiny, None))


def _bins(confidence: np.ndarray) -> np.ndarray:
    """Return the bin of each confidence, from 0 to `BINS` - 1."""
    return np.minimum((confidence * BINS).astype(int), BINS - 1)
