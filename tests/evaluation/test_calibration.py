"""Calibration errors equal those of independent computations, and temperatures find their way."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.special import softmax

from thawline.evaluation.calibration import (
    BINS,
    RESAMPLES,
    calibration_error,
    error_by_chance,
    fit_temperature,
    reliability,
    with_temperature,
)
from thawline.evaluation.predictions import worst_first
from thawline.reports.figures.evaluation import mistakes_grid, per_class_bars, reliability_diagram

NAMES = ["ant", "bee", "wasp"]


def predictions_of(
    logits: np.ndarray, truth: np.ndarray, path: str = "x.jpg", classes: Sequence[str] = NAMES
) -> pd.DataFrame:
    """Return a table like that of `predict_split`."""
    table, names = softmax(logits, axis=1), np.array(classes)
    labels = {"path": path, "label": names[truth], "prediction": names[table.argmax(axis=1)]}
    shares = {f"probability_{name}": table[:, idx] for idx, name in enumerate(classes)}
    return pd.DataFrame(labels | shares)


def true_to(logits: np.ndarray, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Return classes drawn from the probabilities of the logits divided by a temperature."""
    chances = softmax(logits / temperature, axis=1).cumsum(axis=1)
    return (rng.random((len(logits), 1)) > chances).sum(axis=1).clip(max=logits.shape[1] - 1)


@given(st.integers(0, 10_000), st.integers(1, 300), st.floats(0.1, 8))
def test_the_error_is_that_of_a_plain_loop(seed: int, count: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    logits, truth = sharpness * rng.normal(size=(count, 3)), rng.integers(0, 3, count)
    found = calibration_error(predictions_of(logits, truth))
    table = softmax(logits, axis=1)
    confidence, right = table.max(axis=1), table.argmax(axis=1) == truth
    plain = 0.0
    for idx in range(BINS):
        last = idx == BINS - 1
        inside = (confidence >= idx / BINS) & ((confidence < (idx + 1) / BINS) | last)
        if inside.any():
            plain += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert found == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1, 2.5])
def test_the_temperature_is_found_that_the_labels_were_drawn_with(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(8000, 3))
    predictions = predictions_of(logits, true_to(logits, temperature, rng))
    fitted, unseen = predictions[:4000], predictions[4000:]
    found = fit_temperature(fitted)
    assert found == pytest.approx(temperature, rel=0.1)
    before = calibration_error(unseen)
    after = calibration_error(with_temperature(unseen, found))
    assert after < 0.03
    assert after < before or temperature == 1


def test_a_few_images_that_are_all_right_do_not_make_it_certain() -> None:
    truth = np.random.default_rng(0).integers(0, 3, 40)
    assert 0.4 < fit_temperature(predictions_of(3.0 * np.eye(3)[truth], truth)) < 1


@given(st.integers(0, 10_000), st.floats(0.05, 20))
def test_a_temperature_changes_no_prediction_and_1_changes_nothing(
    seed: int, temperature: float
) -> None:
    rng = np.random.default_rng(seed)
    predictions = predictions_of(3 * rng.normal(size=(20, 3)), rng.integers(0, 3, 20))
    columns = [f"probability_{name}" for name in NAMES]
    scaled = with_temperature(predictions, temperature)[columns].to_numpy()
    assert (scaled.argmax(axis=1) == predictions[columns].to_numpy().argmax(axis=1)).all()
    np.testing.assert_allclose(scaled.sum(axis=1), 1)
    np.testing.assert_allclose(with_temperature(predictions, 1)[columns], predictions[columns])


def test_by_chance_a_perfect_classifier_has_the_error_that_is_said() -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.normal(size=(150, 3))
    drawn = [calibration_error(predictions_of(logits, true_to(logits, 1, rng))) for _ in range(200)]
    said = error_by_chance(predictions_of(logits, np.zeros(150, int)), seed=0)
    assert said == pytest.approx(np.mean(drawn), rel=0.06)


def test_the_error_by_chance_needs_less_than_100_bytes_per_image() -> None:
    images = 20_000
    predictions = predictions_of(np.random.default_rng(0).normal(size=(images, 3)), [0] * images)
    tracemalloc.start()
    try:
        error_by_chance(predictions, seed=0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * images


def test_the_error_by_chance_is_that_of_all_resamples_at_once() -> None:
    predictions = predictions_of(2 * np.random.default_rng(1).normal(size=(150, 3)), [0] * 150)
    confidence = predictions[[f"probability_{name}" for name in NAMES]].to_numpy().max(axis=1)
    right = np.random.default_rng(5).random((RESAMPLES, 150)) < confidence
    in_bin = np.eye(BINS)[np.minimum((confidence * BINS).astype(int), BINS - 1)]
    whole = np.abs((right - confidence) @ in_bin).sum(axis=1).mean() / 150
    assert error_by_chance(predictions, seed=5) == pytest.approx(whole, rel=1e-12)


def test_certainty_and_zero_probabilities_are_no_trouble() -> None:
    predictions = predictions_of(np.array([[500.0, -500, 0], [0, 500, -500]]), np.array([0, 2]))
    assert calibration_error(predictions) == pytest.approx(0.5)
    assert np.isfinite(fit_temperature(predictions))


def test_figures_say_what_they_show(tmp_path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "an_image.png"
    Image.new("RGB", (8, 8)).save(path)
    predictions = predictions_of(2 * rng.normal(size=(90, 3)), rng.integers(0, 3, 90), str(path))
    bins = reliability(predictions)
    assert bins["images"].sum() == 90
    errors = {"temperature": 1.5, "test_calibration_error": 0.1}
    errors |= {"test_calibration_error_uncalibrated": 0.2, "test_calibration_error_by_chance": 0.05}
    figure = reliability_diagram(bins, bins, errors)
    names = [trace.name for trace in figure.data if trace.showlegend is not False]
    assert names == [
        "perfect calibration: ECE 5.0% by chance",
        "uncalibrated: ECE 20.0%",
        "temperature 1.50: ECE 10.0%",
    ]
    per_class = pd.DataFrame({"label": NAMES, "images": 30, "precision": 0.5})
    bars = per_class_bars(per_class.assign(recall=[0.2, 0.9, 0.4], f1=[0.3, 0.7, 0.45]))
    assert list(bars.data[0].y) == ["ant", "wasp", "bee"]
    assert list(bars.data[0].x) == [0.2, 0.4, 0.9]
    ranked = worst_first(predictions)
    wrong = ranked[~ranked["correct"]]
    assert (wrong["label"] != wrong["prediction"]).all()
    assert wrong["confidence"].is_monotonic_decreasing
    assert len(wrong) == (predictions["label"] != predictions["prediction"]).sum()
    rows = -(-min(len(wrong), 25) // 5)
    assert mistakes_grid(predictions).height > rows * 200
    right = predictions[predictions["label"] == predictions["prediction"]]
    assert mistakes_grid(right).height < 300
