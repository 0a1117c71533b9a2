"""Images of the same kind are called alike as often as chance allows, and others are told apart."""

import numpy as np
import pandas as pd
import pytest

from thawline.evaluation import drift
from thawline.evaluation.drift import combine, compare_classes, compare_features

NAMES = ["ant", "bee", "wasp"]


def features(count: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Return features of length 1."""
    drawn = np.random.default_rng(seed).normal(size=(count, 8))
    drawn[:, 0] += 1 + shift
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def labels(count: int, seed: int, shares: tuple[float, ...] = (0.4, 0.4, 0.2)) -> list[str]:
    return np.random.default_rng(seed).choice(NAMES, count, p=shares).tolist()


def test_two_halves_of_one_set_are_alike_as_often_as_chance_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The share of 200 draws below 0.05 and 0.5, within four standard errors."""
    monkeypatch.setattr(drift, "PERMUTATIONS", 99)
    halves = [(features(40, seed), features(40, seed + 1000)) for seed in range(200)]
    found = [compare_features(*pair, range(80), seed) for seed, pair in enumerate(halves)]
    assert np.mean(np.array(found) <= 0.05) <= 0.11
    assert np.mean(np.array(found) <= 0.5) == pytest.approx(0.5, abs=0.15)


def test_images_of_another_kind_are_found() -> None:
    pairs = [(features(100, seed), features(100, seed + 99, 1)) for seed in range(9)]
    assert max(compare_features(*pair, range(200), 0) for pair in pairs) < 0.05


def test_repeated_images_of_a_group_are_no_evidence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "PERMUTATIONS", 99)
    apart, together = [], []
    for seed in range(40):
        before, now = features(60, seed), np.repeat(features(6, seed + 1000), 10, axis=0)
        groups = [*map(str, range(60)), *(f"group {idx // 10}" for idx in range(60))]
        apart.append(compare_features(before, now, range(120), seed))
        together.append(compare_features(before, now, groups, seed))
    assert np.mean(np.array(apart) <= 0.05) > 0.5
    assert np.mean(np.array(together) <= 0.05) <= 0.2


def test_groups_may_be_a_series_of_two_tables() -> None:
    own, new = [pd.Series(range(first, first + 30)) for first in (0, 30)]
    pair = features(30, 0), features(30, 1, shift=2)
    joined = compare_features(*pair, pd.concat([own, new]), 0)
    assert joined == compare_features(*pair, range(60), 0) < 0.05


def test_a_class_that_is_missing_is_named_first_and_chance_names_none() -> None:
    found = compare_classes(labels(200, 0), labels(200, 1, (0.5, 0.5, 0)), NAMES, None)
    assert found["label"].iloc[0] == "wasp" and found["p_value"].iloc[0] < 0.001
    assert combine(1.0, found) < 0.01
    alike = [compare_classes(labels(200, s), labels(200, s + 500), NAMES, None) for s in range(100)]
    assert np.mean([table["p_value"].min() < 0.05 for table in alike]) <= 0.12


def test_classes_of_groups_that_look_alike_are_no_evidence_and_a_shift_among_groups_is() -> None:
    """At most 10 % of 100 draws of 30 groups of 10 against 300 images; 18 of 20 draws with one."""
    groups = [*np.repeat(np.arange(30), 10)]
    false = found = 0
    for seed in range(100):
        before = [*np.repeat(labels(30, seed), 10)]
        table = compare_classes(before, labels(300, seed + 500), NAMES, groups)
        false += table["p_value"].min() < 0.05
    assert false <= 10
    for seed in range(20):
        before = np.repeat(features(30, seed), 10, axis=0)
        now = features(300, seed + 500, shift=1.5)
        found += compare_features(before, now, [*groups, *range(1000, 1300)], seed) < 0.05
    assert found >= 18
