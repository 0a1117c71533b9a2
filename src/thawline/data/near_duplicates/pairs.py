"""Pairs of images, the groups that they form, and the classes that they share.

Pairs are a table with the columns first and second, indices of images, and distance.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components

MAX_SIMILAR_PER_IMAGE = 5  # reported pairs of kind `similar`
NO_PAIRS = pd.DataFrame(
    {"first": np.zeros(0, np.int64), "second": np.zeros(0, np.int64), "distance": np.float32()}
)


def renumber(pairs: pd.DataFrame, number: np.ndarray) -> pd.DataFrame:
    """Return the pairs with their indices replaced by `number[index]`."""
    return pairs.assign(first=number[pairs["first"]], second=number[pairs["second"]])


def share_class(pairs: pd.DataFrame, has_class: csr_array) -> np.ndarray:
    """Return which pairs have a class in common (P,); `has_class` is (images, classes)."""
    first, second = (has_class[pairs[name].to_numpy()] for name in ("first", "second"))
    return (first * second).sum(axis=1) > 0


def find_components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number (count,) of the connected component of each node."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def join_groups(group: np.ndarray, pairs: pd.DataFrame) -> np.ndarray:
    """Return the group (N,) of each image, 0, 1, …, after the groups of each pair are joined."""
    ends = group[pairs["first"]], group[pairs["second"]]
    return find_components(group.max() + 1, *ends)[group]


def iterate_groups(group: np.ndarray, min_size: int) -> Iterator[np.ndarray]:
    """Yield the members of each group that is large enough."""
    members = pd.Series(np.flatnonzero(np.bincount(group)[group] >= min_size))
    for _, of_group in members.groupby(group[members]):
        yield of_group.to_numpy()


def closest(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs that are among the `MAX_SIMILAR_PER_IMAGE` closest of one of the two."""
    pairs = pairs.reset_index(drop=True)
    ends = pairs.melt("distance", ["first", "second"], value_name="image", ignore_index=False)
    near = ends.sort_values("distance", kind="stable").groupby("image").head(MAX_SIMILAR_PER_IMAGE)
    return pairs.loc[near.index.unique().sort_values()]
