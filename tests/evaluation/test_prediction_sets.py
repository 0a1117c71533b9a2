"""Prediction sets hold the true class as often as promised, and refusals spare what is familiar."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from evaluation.test_calibration import predictions_of, true_to
from thawline.evaluation.calibration import (
    brier_score,
    calibrate,
    choose_temperature,
    fit_sets,
    measure_sets,
    risk_coverage,
)
from thawline.evaluation.inference import find_nearest
from thawline.evaluation.prediction_sets import class_scores, prediction_sets, upper_bound
from thawline.networks.classifier import LARGEST, Calibration
from thawline.options import ServingOptions

NAMES = ["ant", "bee", "wasp", "fly"]


def predictions(count: int, seed: int, told: float = 1.0) -> pd.DataFrame:
    """Return predictions whose logits are `told` times those that the labels are drawn from."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(count, 4))
    table = predictions_of(told * logits, true_to(logits, 1, rng), classes=NAMES)
    return table.assign(uniform=rng.random(count))


def test_scores_are_those_of_the_paper() -> None:
    """Romano et al. 2020: what is more probable, and a random share of the class itself."""
    scores = class_scores(np.array([[0.2, 0.5, 0.3]]), np.array([0.5]))
    assert scores[0] == pytest.approx([0.9, 0.25, 0.65])


@given(st.integers(1, 200), st.floats(0.05, 0.95))
def test_the_bound_is_the_finite_sample_quantile(count: int, share: float) -> None:
    values = list(np.random.default_rng(count).random(count))
    bound = upper_bound(values, share)
    below = sum(value <= bound for value in values)
    assert bound == LARGEST or (below >= share * (count + 1) > below - 1)
    assert (bound == LARGEST) == (share * (count + 1) > count)


@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("told", [0.5, 1.0, 3.0])
def test_sets_hold_the_true_class_as_often_as_promised(told: float, by_class: bool) -> None:
    """Over 100 draws of 200 validation images; an interval of the binomial distribution."""
    held, count = 0, 0
    for seed in range(100):
        limits = fit_sets(predictions(200, seed, told=told), 0.9, by_class, seed)
        sets = measure_sets(predictions(50, seed + 1000, told=told), limits)
        held += int(sets["covered"].sum())
        count += len(sets)
    assert held >= binom.ppf(0.001, count, 0.9)
    assert held / count < 0.96  # no more than the always included first class gives


def test_too_few_images_for_a_claim_make_sets_of_all_classes() -> None:
    few = predictions(5, 0)
    assert (measure_sets(few, fit_sets(few, 0.9, False, 0))["size"] == len(NAMES)).all()


def test_images_of_a_group_count_once() -> None:
    repeated = pd.concat([predictions(5, 0)] * 40, ignore_index=True)
    repeated["group"] = [*range(5)] * 40
    assert (fit_sets(repeated, 0.9, False, 0) == LARGEST).all()


def test_a_set_always_has_the_most_probable_class() -> None:
    inside = prediction_sets(np.array([[0.6, 0.4]]), np.array([0.9]), np.zeros(2))
    assert inside.tolist() == [[True, False]]


def test_a_temperature_is_taken_if_it_helps_beyond_chance() -> None:
    temperature, _ = choose_temperature(predictions(1000, 0, told=3.0), 0)
    assert temperature == pytest.approx(3, rel=0.3)
    taken = [choose_temperature(predictions(100, seed), seed)[0] != 1 for seed in range(60)]
    assert np.mean(taken) < 0.3  # one standard error is exceeded in 16 of 100


def test_images_like_these_are_kept_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    own = torch.from_numpy(rng.normal(size=(400, 16)) + 8 * np.eye(16)[0]).float()
    reference = torch.nn.functional.normalize(own[:200]).half()
    validation = predictions(100, 0).assign(distance=find_nearest(own[200:300], reference)[0])
    calibration, _ = calibrate(Calibration(reference=reference), validation, ServingOptions(), 0)
    kept = find_nearest(own[300:], reference)[0] <= calibration.max_distance
    assert 0.85 <= kept.float().mean() <= 1
    others = torch.from_numpy(rng.normal(size=(100, 16)) + 8 * np.eye(16)[5]).float()
    assert (find_nearest(others, reference)[0] <= calibration.max_distance).sum() == 0


@pytest.mark.parametrize(("images", "refuses"), [(18, False), (19, True)])
def test_a_run_warns_if_too_few_images_say_how_unlike_is_too_much(
    images: int, refuses: bool, caplog: pytest.LogCaptureFixture
) -> None:
    validation = predictions(images, 0).assign(distance=np.linspace(0, 0.5, images))
    calibration, _ = calibrate(Calibration(), validation, ServingOptions(), 0)
    assert (calibration.max_distance <= 0.5) is refuses
    assert ("no image will be refused" in caplog.text) is not refuses


def test_the_brier_score_and_the_risk_are_those_of_a_plain_loop() -> None:
    table = predictions(30, 0)
    plain = 0.0
    for row in table.to_dict("records"):
        plain += sum((row[f"probability_{name}"] - (row["label"] == name)) ** 2 for name in NAMES)
    assert brier_score(table) == pytest.approx(plain / 30)
    curve = risk_coverage(table)
    assert curve["answered"].iloc[-1] == 1
    right = (table["label"] == table["prediction"]).mean()
    assert curve["accuracy"].iloc[-1] == pytest.approx(right)
