"""Pairs of images by index, the groups that they form, and the classes that they share."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_SIMILAR_PER_IMAGE = 5  # reported pairs of kind `similar`


class Pairs(NamedTuple):
    """Pairs of images by their indices, each (P,)."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray

    def take(self, chosen: np.ndarray) -> Self:
        """Return the pairs at these indices, or where the mask is true."""
        return type(self)(*(column[chosen] for column in self))

    def renumber(self, number: np.ndarray) -> Self:
        """Return the pairs with their indices replaced by `number[index]`."""
        return type(self)(number[self.first], number[self.second], self.distance)


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


class Classes:
    """The classes of each content; nearly all contents have one."""

    def __init__(self, images: pd.DataFrame, contents: pd.Series) -> None:
        """Collect the classes of `contents`, unique values of the column sha256 of `images`."""
        content = pd.Index(contents).get_indexer(images["sha256"])
        label, _ = pd.factorize(images["label"])
        has = np.ones(len(images), np.int32)
        self._has_class = coo_array((has, (content, label))).tocsr()  # (contents, classes)

    def shared(self, pairs: Pairs) -> np.ndarray:
        """Return whether pairs of contents have a class in common (P,)."""
        common = self._has_class[pairs.first].multiply(self._has_class[pairs.second])
        return np.asarray(common.sum(axis=1)).ravel() > 0


def find_components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number (count,) of the connected component of each node."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def concatenate(parts: Iterable[Pairs]) -> Pairs:
    """Return the pairs of all parts."""
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def join_groups(group: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the group (N,) of each image after the groups of each pair are joined."""
    if not len(pairs.first):
        return group
    _, representative = np.unique(group, return_index=True)
    everyone = np.arange(len(group))
    first = np.concatenate([pairs.first, everyone])
    return find_components(len(group), first, np.concatenate([pairs.second, representative[group]]))


def iterate_groups(group: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the members of each group of two or more images."""
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.cumsum(np.bincount(group))[:-1]):
        if len(members) > 1:
            yield members


def closest(pairs: Pairs) -> Pairs:
    """Return the pairs that are among the `MAX_SIMILAR_PER_IMAGE` closest of one of the two."""
    ends = pd.Series(np.concatenate([pairs.first, pairs.second]))
    order = np.argsort(np.tile(pairs.distance, 2), kind="stable")
    near = order[ends[order].groupby(ends[order]).cumcount() < MAX_SIMILAR_PER_IMAGE]
    return pairs.take(np.unique(near % max(1, len(pairs.first))))
