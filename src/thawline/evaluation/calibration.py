"""Measure how well probabilities match accuracy, and correct them with a temperature.

Predictions are tables of `predict_split`.
"""

import dataclasses
import logging
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from thawline.evaluation.prediction_sets import class_scores, prediction_sets, upper_bound
from thawline.evaluation.predictions import as_arrays, probability_columns
from thawline.networks.classifier import LARGEST, Calibration
from thawline.options import ServingOptions
from thawline.training.logistic_regression import is_better, make_folds

logger = logging.getLogger(__name__)

BINS = 15  # of equal width from 0 to 1, as in Guo et al. 2017
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.02, 50.0
# Standard deviation of the prior of the log temperature: most networks need 0.6 to 1.6. Hundreds of
# images outweigh it; without it, a few dozen correct images would make the classifier certain.
PRIOR = 0.5
MIN_ERRORS = 10  # on validation images, for confidences to be raised
RESAMPLES = 1000
KEPT = 0.95  # of validation images, which are like the training images


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
    bins = reliability(predictions)
    gaps = (bins["accuracy"] - bins["confidence"]).abs()
    return float(np.average(gaps, weights=bins["images"]))


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


def calibrate(
    calibration: Calibration, validation: pd.DataFrame, options: ServingOptions, seed: int
) -> tuple[Calibration, str]:
    """Return a calibration by the predictions of validation images, and why its temperature.

    It keeps 95 % of them: images further from the training images than that are unlike these.
    """
    temperature, why = choose_temperature(validation, seed)
    scaled = with_temperature(validation, temperature)
    changes: dict[str, Any] = {"temperature": temperature}
    if options.coverage:
        scores = fit_sets(scaled, options.coverage, options.by_class, seed)
        changes |= {"max_scores": tuple(scores.tolist()), "coverage": options.coverage}
    if options.refuse and "distance" in validation:
        changes["max_distance"] = upper_bound(validation["distance"].tolist(), KEPT)
        if changes["max_distance"] == LARGEST:
            logger.warning(
                "serving.refuse: no image will be refused as unlike the training images, since %d"
                " validation images are too few to say how unlike is too much",
                len(validation),
            )
    return dataclasses.replace(calibration, **changes), why


def choose_temperature(validation: pd.DataFrame, seed: int) -> tuple[float, str]:
    """Return a temperature, and why: 1 unless another is better by more than chance.

    That is, if temperatures that are fitted to folds of the validation images make the labels of
    the others more probable, by two standard errors; images of a group stay together. One below 1,
    which raises confidences, needs at least `MIN_ERRORS` errors: where validation images are nearly
    all right, the few mistakes of other images cost more (`python -m benchmarks.uncertainty`).
    """
    groups = validation["group"].to_numpy() if "group" in validation else None
    _, targets, correct = as_arrays(validation)
    folds = make_folds(targets, groups, seed)
    gains = np.zeros(len(validation))
    for rest, fold in folds:
        own = validation.iloc[fold]
        scaled = with_temperature(own, fit_temperature(validation.iloc[rest]))
        gains[fold] = log_likelihood(scaled) - log_likelihood(own)
    if not folds or not is_better(gains, groups, errors=2):
        return 1.0, f"on {len(validation)} validation images none is better by more than chance"
    temperature, errors = fit_temperature(validation), int((~correct).sum())
    if temperature < 1 and errors < MIN_ERRORS:
        return 1.0, f"{errors} errors on validation images are too few to raise confidences"
    return temperature, "better on validation images by more than chance"


def log_likelihood(predictions: pd.DataFrame) -> np.ndarray:
    """Return the logarithm of the probability of each label, (N,), in nats."""
    probabilities, targets, _ = as_arrays(predictions)
    return _logits(probabilities[np.arange(len(targets)), targets])


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


def fit_sets(validation: pd.DataFrame, coverage: float, by_class: bool, seed: int) -> np.ndarray:
    """Return the largest score of each class in a set, (C,), so that sets hold the true class.

    They do so with probability `coverage`, over images like those of the table of `predict_split`;
    if `by_class`, over those of each class. Of a group, one image counts.
    """
    if "group" in validation:
        validation = validation.groupby("group").sample(1, random_state=seed)
    probabilities, targets, _ = as_arrays(validation)
    scores = class_scores(probabilities, validation["uniform"].to_numpy())
    own, classes = scores[np.arange(len(targets)), targets], range(scores.shape[1])
    return np.array([
        upper_bound(own[targets == idx] if by_class else own, coverage) for idx in classes
    ])  # fmt: skip


def measure_sets(predictions: pd.DataFrame, limits: np.ndarray) -> pd.DataFrame:
    """Return for each image of a table of `predict_split` whether its set holds its class.

    Returns:
        label, covered, and size, the number of classes in the set.
    """
    probabilities, targets, _ = as_arrays(predictions)
    inside = prediction_sets(probabilities, predictions["uniform"].to_numpy(), limits)
    covered = inside[np.arange(len(targets)), targets]
    return predictions[["label"]].assign(covered=covered, size=inside.sum(axis=1))


def brier_score(predictions: pd.DataFrame) -> float:
    """Return the mean squared distance of probabilities and truth, from 0 to 2 (Brier 1950)."""
    probabilities, targets, _ = as_arrays(predictions)
    truth = np.eye(probabilities.shape[1])[targets]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def risk_coverage(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return accuracy (0 to 1) by the share of images that are answered, the surest first."""
    probabilities, _, correct = as_arrays(predictions)
    surest = np.argsort(-probabilities.max(axis=1), kind="stable")
    count = np.arange(1, len(surest) + 1)
    accuracy = correct[surest].cumsum() / count
    return pd.DataFrame({"answered": count / len(surest), "accuracy": accuracy})
