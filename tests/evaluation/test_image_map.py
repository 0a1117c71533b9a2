"""On the map alike images lie together; what is to be labeled next is unsure and spread out."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawline.evaluation import image_map


def clusters(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return features of images of three kinds, and their kinds."""
    rng = np.random.default_rng(seed)
    kinds = np.arange(count) % 3
    return 5 * np.eye(8)[kinds] + rng.normal(0, 0.5, (count, 8)), kinds


@pytest.mark.parametrize("placed", [2000, 40])
def test_the_nearest_on_the_map_is_of_the_same_kind(
    placed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_map, "MAX_PLACED", placed)
    features, kinds = clusters(90)
    positions = image_map.place_images(image_map.reduce_features(features))
    assert positions.min() == 0 and positions.max() == 1
    nearest = image_map.nearest_images(positions, np.arange(90))[:, 0]
    assert (kinds[nearest] == kinds).mean() > 0.95


@given(st.integers(1, 6))
def test_a_handful_of_images_has_a_map_too(count: int) -> None:
    positions = image_map.place_images(image_map.reduce_features(clusters(count)[0]))
    assert positions.shape == (count, 2) and np.isfinite(positions).all()


@given(st.integers(5, 40), st.integers(0, 5))
def test_no_image_is_its_own_neighbor_and_all_neighbors_are_candidates(
    count: int, seed: int
) -> None:
    components = clusters(count, seed)[0]
    candidates = np.arange(0, count, 2)
    nearest = image_map.nearest_images(components, candidates)
    assert set(nearest.ravel()) <= set(candidates)
    assert all(row not in found for row, found in enumerate(nearest))


@given(st.integers(2, 30), st.integers(1, 40), st.integers(0, 5))
def test_each_image_is_ranked_once(count: int, wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    components, labeled = rng.normal(size=(count, 4)), rng.normal(size=(5, 4))
    ranked = image_map.rank_unlabeled(components, labeled, rng.dirichlet(np.ones(3), count), wanted)
    assert len(ranked) == len(set(ranked)) == min(wanted, count)


def test_what_is_sure_or_alike_comes_last() -> None:
    components = np.array([[0.0, 0], [1, 0], [1, 0.01], [0, 1]])
    probabilities = np.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [1.0, 0]])
    ranked = image_map.rank_unlabeled(components, np.array([[-1.0, 0]]), probabilities, 4)
    assert ranked[:2] == [2, 0]
