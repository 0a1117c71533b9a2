"""The verdict on strategies is right, and cautious where it should be."""

import io
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats
from sklearn.metrics import confusion_matrix

from evaluation.test_significance import Answers, InGroups, rate, two_models_in_groups
from helpers.trials import make_trials
from thawline.evaluation.comparison import compare
from thawline.evaluation.metrics import count_confusion
from thawline.evaluation.significance import holm_correction, paired_test
from thawline.reports.comparison import console_table

SETS = {"head_only": 0.95, "freeze_to_layer3": 0.94, "full": 0.8}


def simulate(
    rng: np.random.Generator,
    repeats: int,
    seeds: int,
    images: int,
    better: float = 0,
    lucky: float = 0.3,
) -> Answers:
    """Return right or wrong (repeats, seeds, images) of two models on images of equal hardness.

    A model likes some images more than the other does, and some of its seeds are lucky on all.
    """
    hard = rng.normal(0, 2, (repeats, 1, images))
    first, second = (
        2 + by + hard + rng.normal(0, 1, hard.shape) + rng.normal(0, lucky, (repeats, seeds, 1))
        + rng.logistic(0, 1, (repeats, seeds, images)) > 0
        for by in (better, 0)
    )  # fmt: skip
    return first, second


@given(models=two_models_in_groups())
def test_identical_predictions_are_no_difference(models: InGroups) -> None:
    same, *_ = models
    result = paired_test(same, same)
    assert (result.difference, result.p_value) == (0, 1)
    assert result.low == pytest.approx(-result.high)


@pytest.mark.parametrize("only_a", [5, 8, 12, 20, 40])
@pytest.mark.parametrize("only_b", [0, 2, 3, 10])
def test_one_training_each_gives_about_mcnemars_mid_p(only_a: int, only_b: int) -> None:
    a, b = np.ones(300, dtype=bool), np.ones(300, dtype=bool)
    a[:only_b], b[only_b : only_b + only_a] = False, False
    both = only_a + only_b
    exact = stats.binomtest(only_a, both).pvalue
    mid_p = exact - stats.binom.pmf(min(only_a, only_b), both, 0.5)  # Fagerland et al. 2013
    assert paired_test(a, b).p_value == pytest.approx(mid_p, abs=0.03 + 0.2 * mid_p)


@pytest.mark.parametrize(("seeds", "images"), [(1, 153), (3, 60), (3, 153), (5, 1000)])
def test_equal_models_are_called_different_in_hardly_more_than_5_percent(
    seeds: int, images: int
) -> None:
    rng = np.random.default_rng(0)
    lucky = 0 if seeds == 1 else 0.3  # one training of each is compared with no other seed
    assert rate(simulate(rng, 600, seeds, images, lucky=lucky)) <= 0.075


def test_pooling_the_predictions_of_seeds_would_see_differences_where_none_are() -> None:
    first, second = simulate(np.random.default_rng(0), 300, 5, 400)
    assert rate((first.reshape(300, -1), second.reshape(300, -1))) > 0.2
    assert rate((first, second)) <= 0.075


def test_a_better_model_is_found_with_enough_images_and_more_often_with_more_seeds() -> None:
    rng = np.random.default_rng(0)
    rates = [rate(simulate(rng, 200, seeds, 1000, better=0.5, lucky=0.1)) for seeds in (1, 4)]
    assert rates[0] < rates[1]
    assert rates[1] > 0.9


@given(p_values=st.lists(st.floats(0, 1), max_size=8))
def test_holm_corrects_the_least_p_by_the_number_of_tests(p_values: list[float]) -> None:
    corrected = holm_correction(np.array(p_values))
    assert len(corrected) == len(p_values)
    for before, after in zip(p_values, corrected, strict=True):
        assert before <= after <= min(1, before * len(p_values)) or after == max(corrected)
    if p_values:
        assert min(corrected) == min(1, min(p_values) * len(p_values))


def test_the_table_has_means_and_students_interval_best_first() -> None:
    trials = make_trials(SETS)
    table = compare(trials).table.set_index("strategy")
    assert table["test_accuracy"].is_monotonic_decreasing
    for name, row in table.iterrows():
        scores = trials.table.loc[trials.table["strategy"] == name, "test_accuracy"]
        low, high = stats.t.interval(0.95, 2, np.mean(scores), stats.sem(scores))
        assert row["test_accuracy"] == pytest.approx(np.mean(scores))
        assert row["test_accuracy_low"] == pytest.approx(low)
        assert row["test_accuracy_high"] == pytest.approx(min(1, high))
        last = trials.histories[trials.histories["epoch"] == 5]
        train = last.loc[last["strategy"] == name, "train_accuracy"].mean()
        assert row["generalization_gap"] == pytest.approx(train - np.mean(scores))
        assert row["seeds"] == 3


def test_training_accuracy_is_that_of_the_epoch_that_was_kept() -> None:
    trial = make_trials({"full": 0.9}, seeds=1)
    table = compare(trial._replace(table=trial.table.assign(best_epoch=2))).table
    assert table["train_accuracy"].item() == trial.histories["train_accuracy"].iloc[1]
    none = pd.DataFrame(columns=trial.histories.columns)
    untrained = trial._replace(table=trial.table.assign(best_epoch=0), histories=none)
    row = compare(untrained).table.iloc[0]
    assert np.isnan(row["train_accuracy"])
    assert row["trainable_parameters"] == 0


def test_images_of_a_group_are_compared_together() -> None:
    trials = make_trials({"full": 0.9, "head_only": 0.75})
    groups = [f"patient {number // 20}" for number in range(153)]
    grouped = trials._replace(predictions=trials.predictions.assign(group=groups * 6))
    answers = {
        name: np.stack([each["label"] == each["prediction"] for _, each in rows.groupby("seed")])
        for name, rows in trials.predictions.groupby("strategy")
    }
    for found, of in ((compare(trials), None), (compare(grouped), groups)):
        row = found.pairs.iloc[0]
        expected = paired_test(answers["full"], answers["head_only"], of)
        assert tuple(row[["difference", "low", "high", "p_value"]]) == expected


def test_one_seed_has_the_interval_of_its_metrics_and_a_caveat() -> None:
    trials = make_trials(SETS, seeds=1)
    comparison = compare(trials)
    best = trials.table.set_index("strategy").loc[comparison.verdict["best"]]
    assert comparison.table["test_accuracy_low"].iloc[0] == best["test_accuracy_low"]
    assert "the variation between seeds is unknown" in comparison.verdict["sentence"]


def test_a_clear_winner_beats_the_next() -> None:
    verdict = compare(make_trials({"full": 0.97, "head_only": 0.6})).verdict
    assert verdict["significant"]
    assert verdict["recommended"] == "full"
    assert verdict["sentence"].startswith("full beats head_only: +3")
    assert "p < 0.001, in" in verdict["sentence"]


def test_without_a_significant_difference_the_cheaper_one_is_taken() -> None:
    trials = make_trials({"head_only": 0.9, "full": 0.9})
    trials.table.loc[0, "seconds"] = 1.0
    verdict = compare(trials).verdict
    assert not verdict["significant"]
    assert verdict["recommended"] == "head_only"
    assert "No significant difference between" in verdict["sentence"]
    assert "Take head_only, the cheapest of 2 without" in verdict["sentence"]
    assert verdict["low"] < 0 < verdict["high"]


def test_among_several_equals_the_cheapest_is_taken_and_the_bad_one_is_none_of_them() -> None:
    comparison = compare(make_trials({"bad_and_quick": 0.5, "a": 0.9, "b": 0.9, "c": 0.9}))
    assert comparison.verdict["recommended"] == "a"
    assert "Take a, the cheapest of 3 without" in comparison.verdict["sentence"]
    pairs = comparison.pairs.set_index("strategy")
    assert pairs.loc["bad_and_quick", "p_holm"] < 0.001
    assert (pairs["p_holm"] >= pairs["p_value"]).all()


def test_of_those_that_are_about_as_cheap_the_most_accurate_is_taken() -> None:
    trials = make_trials(dict.fromkeys("abc", 0.9))
    trials.table["seconds"] = trials.table["strategy"].map({"a": 9.0, "b": 5.0, "c": 1.0})
    found = compare(trials)
    assert found.verdict["recommended"] == found.verdict["best"] == found.table["strategy"][0]
    trials.table["seconds"] = trials.table["strategy"].map({"a": 90.0, "b": 9.0, "c": 5.0})
    trials.table.loc[trials.table["strategy"] != "c", "test_accuracy"] += 0.01
    verdict = compare(trials).verdict
    assert verdict["recommended"] == "b"
    assert "ake b, about as cheap as any of 3 without" in verdict["sentence"]


def test_the_time_is_not_that_of_the_seed_that_fills_the_cache() -> None:
    trials = make_trials({"a": 0.9, "b": 0.9})
    slow = (trials.table["strategy"] == "a") & (trials.table["seed"] == 0)
    trials.table["seconds"] = np.where(slow, 100.0, 2.0)
    soup = {"seeds": 2, **trials.table.iloc[0].drop(["strategy", "seed", "best_epoch", "seconds"])}
    shown = compare(trials._replace(soups={"a": soup})).shown.set_index("strategy")["seconds"]
    assert shown.to_dict() == {"a": 2.0, "b": 2.0, "a.soup": 104.0}


def test_one_strategy_alone_is_compared_with_nothing() -> None:
    comparison = compare(make_trials({"full": 0.9}))
    assert comparison.pairs.empty
    assert comparison.verdict["sentence"].startswith("Only full was trained")


def test_the_summary_is_json() -> None:
    trials = make_trials({"full": 0.9, "head_only": 0.8})
    trials.table.loc[trials.table["strategy"] == "full", "best_epoch"] = 0
    comparison = compare(trials)
    read = json.loads(json.dumps(comparison.summary(), allow_nan=False))
    assert read["verdict"] == comparison.verdict
    by_name = {row["strategy"]: row for row in read["strategies"]}
    assert by_name["full"]["train_accuracy"] is None
    assert read["pairs"][0]["p_value"] == comparison.pairs["p_value"].iloc[0]


def test_the_pooled_confusion_counts_every_seed() -> None:
    predictions = make_trials({"full": 0.7}, classes=("7", "NA", "bee")).predictions
    counts = count_confusion(predictions)
    names = ["7", "NA", "bee"]
    expected = confusion_matrix(predictions["label"], predictions["prediction"], labels=names)
    assert expected.sum() == 3 * 153
    assert (list(counts.index), list(counts.columns)) == (names, names)
    assert (counts.to_numpy() == expected).all()


def test_the_console_table_fits_80_columns_and_shows_all_of_every_name() -> None:
    names = ["full", "[bold]mine[/bold]", "a_very_long_name_of_a_strategy_with_many_phases"]
    table = compare(make_trials(dict.fromkeys(names, 0.9))).table
    table["trainable_parameters"] = 123_456_789
    console = Console(width=80, file=io.StringIO())
    console.print(console_table(table))
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    joined = "".join(line[:20].strip().split(" ")[0] for line in lines)
    assert all(name in joined for name in names), joined
    assert "123,456,789" in "".join(lines)


@pytest.mark.parametrize("accuracies", [(0.9, 0.8, 0.89), (0.95, 0.9, 0.6), (0.9, 0.88, 0.87)])
def test_what_is_taken_is_the_cheapest_that_does_not_differ_from_the_best(
    accuracies: tuple[float, ...],
) -> None:
    trials = make_trials(dict(zip("abc", accuracies, strict=True)))
    trials.table["seconds"] = trials.table["strategy"].map({"a": 90.0, "b": 50.0, "c": 10.0})
    found = compare(trials)
    equal = found.pairs.loc[found.pairs["p_holm"] >= 0.05, "strategy"]
    seconds = found.table.set_index("strategy")["seconds"]
    best, taken = found.verdict["best"], found.verdict["recommended"]
    assert taken == seconds[[best, *equal]].idxmin()
    assert f"take {taken}" in found.verdict["sentence"].lower() or taken == best
