"""Place images in a plane by their features, and rank those that a person should look at."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

COMPONENTS = 50
MAX_FITTED = 3000  # images that the components are fitted to
MAX_PLACED = 2000  # images that t-SNE places; the others follow their neighbors
PERPLEXITY = 30.0
NEIGHBORS = 3


def reduce_features(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return the principal components (N, up to 50) of features (N, F) of length 1."""
    directions = normalize(features)
    some = _some(len(features), MAX_FITTED, seed)
    count = min(COMPONENTS, *directions[some].shape)
    return PCA(count, random_state=seed).fit(directions[some]).transform(directions)


def place_images(components: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return positions (N, 2) from 0 to 1 in a plane where images that are alike lie together.

    They are those of t-SNE (van der Maaten and Hinton 2008) for 2,000 images; each further one
    lies amid its three nearest of these.
    """
    if len(components) < NEIGHBORS + 2:  # too few for t-SNE
        return _scale(np.pad(components, ((0, 0), (0, 2)))[:, :2])
    some = _some(len(components), MAX_PLACED, seed)
    perplexity = min(PERPLEXITY, (len(some) - 1) / NEIGHBORS)
    placed = TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(components[some])
    index = NearestNeighbors(n_neighbors=NEIGHBORS).fit(components[some])
    positions = placed[index.kneighbors(components, return_distance=False)].mean(axis=1)
    positions[some] = placed
    return _scale(positions)


def nearest_images(components: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return for each image the positions (N, up to 3) of the nearest candidates, itself excepted.

    Components are (N, D), candidates positions among them (M,).
    """
    index = NearestNeighbors(n_neighbors=min(NEIGHBORS + 1, len(candidates)))
    found = candidates[index.fit(components[candidates]).kneighbors(components)[1]]
    own = np.arange(len(components))[:, None]
    order = np.argsort(found == own, axis=1, kind="stable")  # itself last
    count = min(NEIGHBORS, len(candidates) - 1)
    return np.take_along_axis(found, order, axis=1)[:, :count]


def rank_unlabeled(
    components: np.ndarray, labeled: np.ndarray, probabilities: np.ndarray, count: int
) -> list[int]:
    """Return up to `count` images to label next, the most useful first.

    Each is the one whose margin between its two most probable classes is small, and which is far
    from all that are labeled or chosen already: a greedy cover (Sener and Savarese 2018,
    arXiv:1708.00489) of uncertain images.

    Args:
        components: of the unlabeled images, (N, D).
        labeled: components of the labeled ones, (M, D).
        probabilities: of the unlabeled images, (N, C).
        count: how many at most.
    """
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    uncertainty = 1 - (first - second)
    distances = NearestNeighbors(n_neighbors=1).fit(labeled).kneighbors(components)[0][:, 0]
    chosen: list[int] = []
    for _ in range(min(count, len(components))):
        score = uncertainty * distances
        score[chosen] = -1
        chosen.append(int(score.argmax()))
        distances = np.minimum(
            distances, np.linalg.norm(components - components[chosen[-1]], axis=1)
        )
    return chosen


def describe_images(
    images: pd.DataFrame,
    components: np.ndarray,
    probabilities: np.ndarray,
    names: Sequence[str],
    seed: int,
) -> pd.DataFrame:
    """Return the images (path, label, split) with what the review shows of them.

    Components are those of `reduce_features`, probabilities (N, C) of the classes `names`.

    Returns:
        path, label, split; prediction; confidence (0 to 1); margin to the second class; x and y
        (0 to 1); nearest: the rows of the nearest training images, separated by spaces.
    """
    x, y = place_images(components, seed).T
    train = np.flatnonzero(images["split"] == "train")
    second, first = np.partition(probabilities, -2, axis=1)[:, -2:].T
    nearest = [" ".join(map(str, row)) for row in nearest_images(components, train)]
    return images[["path", "label", "split"]].assign(
        prediction=[names[idx] for idx in probabilities.argmax(axis=1)],
        confidence=first, margin=first - second, x=x, y=y, nearest=nearest,
    )  # fmt: skip


def _some(count: int, most: int, seed: int) -> np.ndarray:
    """Return up to `most` of `count` positions, at random, in order."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def _scale(positions: np.ndarray) -> np.ndarray:
    """Return positions (N, 2) from 0 to 1."""
    low, high = positions.min(axis=0), positions.max(axis=0)
    return (positions - low) / np.maximum(high - low, 1e-9)
