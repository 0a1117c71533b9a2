"""Pairs of images by number, the groups that they form, and the classes that they share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

MAX_SIMILAR_PER_IMAGE = 5  # pairs of kind `similar` that are reported for an image


class Pairs(NamedTuple):
    """Pairs of images by their numbers, each (P,)."""

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray

    def take(self, chosen: np.ndarray) -> Pairs:
        """Return the pairs at these places, or where the mask is true."""
        return Pairs(*(column[chosen] for column in self))


NO_PAIRS = Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))


class Classes:
    """Which contents share a class."""

    def __init__(self, images: pd.DataFrame, contents: pd.Series) -> None:
        """Collect the classes of each content; nearly all contents have one."""
        number = pd.Index(contents).get_indexer(images["sha256"])
        label, _ = pd.factorize(images["label"])
        places = pd.DataFrame({"number": number, "label": label}).drop_duplicates()
        several = places[places["number"].duplicated(keep=False)]
        self.label = np.zeros(len(contents), np.int64)
        self.label[places["number"]] = places["label"]
        self.in_several = np.zeros(len(contents), bool)
        self.in_several[several["number"]] = True
        self.labels: dict[int, set[int]] = {}
        for one, its_label in several.itertuples(index=False):
            self.labels.setdefault(one, set()).add(its_label)

    def shared(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Return for pairs of contents, by their numbers, whether any class is the same (P,)."""
        same = self.label[first] == self.label[second]
        unclear = ~same & (self.in_several[first] | self.in_several[second])
        for place in np.flatnonzero(unclear):
            one, two = (self._labels_of(int(end[place])) for end in (first, second))
            same[place] = not one.isdisjoint(two)
        return same

    def _labels_of(self, number: int) -> set[int]:
        return self.labels.get(number, {int(self.label[number])})


def find_components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the number (count,) of the connected component of each node."""
    links = coo_array((np.ones(len(first), bool), (first, second)), shape=(count, count))
    return connected_components(links, directed=False)[1]


def concatenate(parts: Iterable[Pairs]) -> Pairs:
    """Return all pairs of some parts."""
    return Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def renumber(pairs: Pairs, number: np.ndarray) -> Pairs:
    """Return the pairs with other numbers of their images, in the same order."""
    return pairs._replace(first=number[pairs.first], second=number[pairs.second])


def join_groups(group: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Return the group (N,) of each image after those of the pairs are joined."""
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
    ends = np.concatenate([pairs.first, pairs.second])
    order = np.lexsort((np.tile(pairs.distance, 2), ends))
    starts = np.flatnonzero(np.diff(ends[order], prepend=-1))
    lengths = np.diff(starts, append=len(order))
    rank = np.arange(len(order)) - np.repeat(starts, lengths)
    chosen = order[rank < MAX_SIMILAR_PER_IMAGE] % max(1, len(pairs.first))
    return pairs.take(np.unique(chosen))
