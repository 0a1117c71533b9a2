"""Intervals hold the true accuracy, and equal models are equal, also where images come in groups.

All error rates and coverages are simulated with fixed seeds.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from thawline.errors import DataError
from thawline.evaluation.significance import (
    accuracy_interval,
    effective_images,
    holm_correction,
    paired_test,
)

Answers = tuple[np.ndarray, np.ndarray]
InGroups = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def answers_in_groups(draw: st.DrawFn) -> Answers:
    count = draw(st.integers(1, 40))
    correct = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(0, 12), min_size=count, max_size=count))
    return np.array(correct), np.array(groups)


def sizes_of_groups(rng: np.random.Generator, kind: str, groups: int) -> np.ndarray:
    """Return the images of each group: all the same, 2 to 20, or mostly few and seldom 30."""
    if kind == "2 to 20":
        return rng.integers(2, 21, groups)
    if kind == "1 to 30":
        return np.minimum(30, rng.geometric(0.12, groups))
    return np.full(groups, int(kind))


def draw_correct(
    rng: np.random.Generator, groups: np.ndarray, accuracy: float, shared: float
) -> np.ndarray:
    """Return right or wrong (images,) with that correlation, 0 to 1, within groups."""
    probability = np.full(groups.max() + 1, accuracy)
    if shared == 1:
        probability = (rng.random(len(probability)) < accuracy).astype(float)
    elif shared:
        alpha = (1 - shared) / shared
        probability = rng.beta(accuracy * alpha, (1 - accuracy) * alpha, len(probability))
    return rng.random(len(groups)) < probability[groups]


@pytest.mark.parametrize("images", [12, 50, 153, 1000])
def test_the_interval_covers_every_accuracy_at_least_95_times_in_100(images: int) -> None:
    right = np.arange(images + 1)
    low, high = np.array([accuracy_interval(np.arange(images) < count) for count in right]).T
    for accuracy in np.linspace(0.5, 0.99, 50):
        covered = (low <= accuracy) & (accuracy <= high)
        assert stats.binom.pmf(right, images, accuracy)[covered].sum() >= 0.95


@pytest.mark.parametrize("kind", ["2", "20", "2 to 20", "1 to 30"])
@pytest.mark.parametrize("shared", [0, 0.3, 1])
@pytest.mark.parametrize(("count", "accuracy"), [(12, 0.9), (40, 0.5), (40, 0.98), (100, 0.95)])
def test_the_interval_of_grouped_images_covers_the_accuracy_at_least_93_times_in_100(
    count: int, accuracy: float, shared: float, kind: str
) -> None:
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        groups = np.repeat(np.arange(count), sizes_of_groups(rng, kind, count))
        low, high = accuracy_interval(draw_correct(rng, groups, accuracy, shared), groups)
        covered.append(low <= accuracy <= high)
    assert np.mean(covered) >= 0.93


def test_the_interval_by_image_would_miss_the_accuracy_where_groups_are_right_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    drawn = [accuracy_interval(draw_correct(rng, groups, 0.8, 1)) for _ in range(300)]
    assert np.mean([low <= 0.8 <= high for low, high in drawn]) < 0.6


@given(count=st.integers(1, 300), data=st.data())
def test_without_groups_the_interval_is_that_of_clopper_and_pearson(
    count: int, data: st.DataObject
) -> None:
    right = data.draw(st.integers(0, count))
    exact = stats.binomtest(right, count).proportion_ci(method="exact")
    assert accuracy_interval(np.arange(count) < right) == pytest.approx((exact.low, exact.high))


def test_an_interval_does_not_collapse_where_all_images_are_right() -> None:
    assert accuracy_interval(np.ones(12)) == (pytest.approx(0.7354, abs=1e-4), 1)
    found = accuracy_interval(np.ones(120), np.repeat(np.arange(12), 10))
    assert found == pytest.approx(accuracy_interval(np.ones(12)))


@given(answers=answers_in_groups())
def test_the_interval_holds_the_accuracy_and_is_never_narrower_than_that_of_single_images(
    answers: Answers,
) -> None:
    correct, groups = answers
    low, high = accuracy_interval(correct, groups)
    assert 0 <= low <= correct.mean() <= high <= 1
    narrow_low, narrow_high = accuracy_interval(correct)
    assert low <= narrow_low + 1e-9 and narrow_high <= high + 1e-9


@given(answers=answers_in_groups())
def test_images_that_are_groups_of_their_own_have_the_interval_of_single_images(
    answers: Answers,
) -> None:
    correct, _ = answers
    names = [f"patient {number}" for number in range(len(correct))][::-1]
    assert accuracy_interval(correct, names) == accuracy_interval(correct)
    assert effective_images(correct, names) == len(correct)


@given(answers=answers_in_groups(), size=st.integers(1, 5))
def test_groups_of_one_size_that_are_right_or_wrong_as_a_whole_count_as_one_image_each(
    answers: Answers, size: int
) -> None:
    correct, _ = answers
    groups = np.arange(len(correct)).repeat(size)
    assert effective_images(correct.repeat(size), groups) == pytest.approx(len(correct))


@given(answers=answers_in_groups(), order=st.randoms())
def test_neither_the_order_of_images_nor_the_names_of_groups_matter(
    answers: Answers, order: np.random.Generator
) -> None:
    correct, groups = answers
    images = list(range(len(correct)))
    order.shuffle(images)
    names = np.array([f"group {group}" for group in groups])
    found = accuracy_interval(correct[images], names[images])
    assert found == pytest.approx(accuracy_interval(correct, groups))


def simulate_in_groups(
    rng: np.random.Generator,
    repeats: int,
    seeds: int,
    groups: np.ndarray,
    shared: float,
    better: float = 0,
) -> Answers:
    """Return right or wrong (repeats, seeds, images) of two models on images of equal hardness.

    A model likes some images more than the other does, and so does each of its seeds; some seeds
    are lucky on all. All but the luck is shared within groups, by 0 (not at all) to 1 (a group is
    right or wrong as a whole).
    """
    count = groups.max() + 1

    def draw(*shape: int) -> np.ndarray:
        by_group = rng.normal(0, 1, (*shape, count))[..., groups]
        if shared == 1:
            return by_group
        by_image = rng.normal(0, 1, (*shape, len(groups)))
        return np.sqrt(shared) * by_group + np.sqrt(1 - shared) * by_image

    luck = 0 if seeds == 1 else 0.15
    hard = draw(repeats, 1)
    first, second = (
        1 + by + hard + 0.7 * draw(repeats, 1) + 0.7 * draw(repeats, seeds)
        + luck * rng.normal(0, 1, (repeats, seeds, 1)) > 0
        for by in (better, 0)
    )  # fmt: skip
    return first, second


def rate(answers: Answers, groups: np.ndarray | None = None) -> float:
    """Return how often the two are called different."""
    pairs = zip(*answers, strict=True)
    return float(np.mean([paired_test(a, b, groups).p_value < 0.05 for a, b in pairs]))


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("shared", [0, 0.5, 1])
@pytest.mark.parametrize(
    ("count", "kind"), [(20, "8"), (60, "5"), (12, "1 to 30"), (40, "2 to 20"), (100, "1 to 30")]
)
def test_equal_models_are_called_different_in_hardly_more_than_5_percent_whatever_the_groups(
    count: int, kind: str, shared: float, seeds: int
) -> None:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(count), sizes_of_groups(rng, kind, count))
    assert rate(simulate_in_groups(rng, 800, seeds, groups, shared), groups) <= 0.07


@pytest.mark.parametrize(("count", "size"), [(20, 8), (60, 5)])
def test_counting_images_of_a_group_one_by_one_would_see_differences_where_none_are(
    count: int, size: int
) -> None:
    groups = np.arange(count).repeat(size)
    answers = simulate_in_groups(np.random.default_rng(0), 300, 1, groups, shared=1)
    assert rate(answers, None) > 0.2
    assert rate(answers, groups) <= 0.07


def test_groups_whose_images_have_nothing_in_common_cost_little_power() -> None:
    groups = np.arange(60).repeat(8)
    answers = simulate_in_groups(np.random.default_rng(0), 300, 1, groups, shared=0, better=0.25)
    by_image, by_group = rate(answers, None), rate(answers, groups)
    assert by_image > 0.6
    assert by_group > 0.9 * by_image


def test_a_better_model_is_found_with_enough_groups() -> None:
    rng = np.random.default_rng(0)
    rates = []
    for count in (20, 200):
        groups = np.arange(count).repeat(8)
        rates.append(rate(simulate_in_groups(rng, 200, 1, groups, 0.5, better=0.4), groups))
    assert rates[0] < rates[1]
    assert rates[1] > 0.9


@st.composite
def two_models_in_groups(draw: st.DrawFn) -> InGroups:
    images = draw(st.integers(2, 40))
    a, b = (draw(arrays(bool, (draw(st.integers(1, 4)), images))) for _ in range(2))
    return a, b, draw(arrays(np.int64, images, elements=st.integers(0, 8)))


@given(models=two_models_in_groups())
def test_images_that_are_groups_of_their_own_are_tested_as_single_images(models: InGroups) -> None:
    a, b, groups = models
    names = [f"patient {number}" for number in range(len(groups))][::-1]
    assert paired_test(a, b, names) == paired_test(a, b)  # to the last bit


@pytest.mark.parametrize("is_grouped", [False, True])
@given(models=two_models_in_groups(), order=st.randoms())
def test_a_test_is_symmetric_and_its_interval_agrees_with_its_p_value(
    models: InGroups, order: np.random.Generator, is_grouped: bool
) -> None:
    a, b, groups = models
    names = np.array([f"group {group}" for group in groups]) if is_grouped else None
    result, other = paired_test(a, b, names), paired_test(b, a, names)
    assert result.difference == pytest.approx(a.mean() - b.mean())
    assert other == pytest.approx((-result.difference, -result.high, -result.low, result.p_value))
    assert -1 <= result.low <= result.high <= 1 and 0 <= result.p_value <= 1
    if abs(result.p_value - 0.05) > 1e-9:
        assert (result.low > 0 or result.high < 0) == (result.p_value < 0.05)
    images = list(range(len(groups)))
    order.shuffle(images)
    turned = paired_test(a[::-1, images], b[:, images], names[images] if is_grouped else None)
    assert turned == pytest.approx(result, abs=1e-9 if is_grouped else None)


@given(models=two_models_in_groups())
def test_one_group_alone_shows_no_difference(models: InGroups) -> None:
    a, b, groups = models
    assert paired_test(a, b, np.zeros_like(groups)).p_value > 0.05


def test_an_added_group_counts_by_the_design_effect_in_an_example() -> None:
    # Half a group of two right and half a group of two wrong images: 1.75 / 1.375.
    assert effective_images(np.array([1, 1, 1, 0]), ["a", "a", "b", "b"]) == pytest.approx(22 / 7)
    # Differences 1 1, 0 0 and 0 -1: the design effect is 40 / 23, that of pairs at most 2.
    a, b = np.array([1, 1, 0, 1, 0, 0], dtype=bool), np.array([0, 0, 0, 1, 0, 1], dtype=bool)
    found = paired_test(a, b, ["a", "a", "b", "b", "c", "c"])
    groups = np.array([1, 0, -0.5, 20 / 23, -20 / 23]) * 115 / 109
    error = groups.std(ddof=1) / np.sqrt(5)
    half = stats.t.ppf(0.975, 4) * error
    assert found.difference == pytest.approx(1 / 6)
    assert found.low == pytest.approx(groups.mean() - half)
    assert found.high == 1 < groups.mean() + half
    assert found.p_value == pytest.approx(2 * stats.t.sf(groups.mean() / error, 4))


def test_the_variance_between_trainings_is_that_of_a_two_way_layout() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((3, 40)) < np.array([[0.95], [0.8], [0.6]])
    b = rng.random(40) < 0.5
    found = paired_test(a, b)
    padded = np.append(a.mean(axis=0) - b, [1 / 3, -1 / 3])
    rest = a - a.mean(axis=1, keepdims=True) - a.mean(axis=0) + a.mean()
    of_trainings = 40 * a.mean(axis=1).var(ddof=1)  # mean squares
    of_error = (rest**2).sum() / (2 * 39)
    between = (of_trainings - of_error) / 40 / 3
    within = padded.var(ddof=1) / 42
    freedom = (within + between) ** 2 / (within**2 / 41 + between**2 / 2)
    error = np.sqrt(within + between)
    assert between > 0
    assert found.low == pytest.approx(padded.mean() - stats.t.ppf(0.975, freedom) * error)
    assert found.p_value == pytest.approx(2 * stats.t.sf(padded.mean() / error, freedom))
    same = paired_test(np.stack([a[0], a[0]]), b)  # trainings that do not differ add nothing
    assert same.p_value < 0.001


def test_p_values_are_corrected_as_in_holms_paper() -> None:
    assert holm_correction(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_correction(np.array([0.9, 0.6])).tolist() == [1, 1]
    assert holm_correction(np.array([0.2])).tolist() == [0.2]


@pytest.mark.parametrize(("images", "others"), [(3, (4,)), (3, (2, 4)), (1, (1,))])
def test_a_test_of_different_or_too_few_images_is_refused(
    images: int, others: tuple[int, ...]
) -> None:
    message = f"needs the same test images for both, at least 2: found {images} and {others[-1]}"
    with pytest.raises(DataError, match=message):
        paired_test(np.ones(images), np.ones(others))
