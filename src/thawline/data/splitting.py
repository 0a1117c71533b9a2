"""Split a manifest of images into train, val and test."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from thawline.data.manifests import BATCH, is_increasing, texts_of
from thawline.data.sources import SPLITS
from thawline.errors import DataError
from thawline.options import SplitFractions


def split_dataset(manifest: pd.DataFrame, fractions: SplitFractions, seed: int) -> pd.DataFrame:
    """Return the table of splits: path, label, class_index, split and, if given, group and sha256.

    Images without a split of their own are split class by class (stratified), with at least one
    group of every class in every split. Where an image goes follows from a hash of its group and
    the seed, corrected only so far that each class has its fractions. So images stay where they are
    when others are added. Without a `group` column each content (`sha256`) is a group of its own,
    and without that each path below the folder that all have in common.

    A group counts to the class that most of its images have and is never torn apart, so with large
    groups the fractions are approximate. Where the data brings its own splits they are kept, and
    what is missing is made so that the reported number never chose the model: a given `val` without
    `test` becomes the test split, and validation is carved out of `train`.

    Args:
        manifest: path, label and, if the data brings them, split, group and sha256; one row per
            image. Where the labels are categories, so are the splits, and a manifest in the order
            of its paths is not copied: so ten million rows fit into memory.
        fractions: of the images of each class in train, val and test.
        seed: the same seed gives the same table.

    Raises:
        DataError: when a class has too few images, or there are fewer than two classes.
    """
    splits = manifest if _is_sorted(manifest["path"]) else manifest.sort_values("path")
    splits = splits.reset_index(drop=True)
    label, classes = _codes(splits["label"])
    if len(classes) < 2:  # noqa: PLR2004
        raise DataError(
            f"dataset.root: a classifier needs at least two classes, found {len(classes)}"
            f" ({', '.join(classes)}). Put the images of each class into a folder of its own."
        )
    codes = _fill_splits(splits, label, classes, fractions, seed)
    split = pd.Categorical.from_codes(codes, pd.Index(SPLITS, dtype="str"))
    compact = isinstance(splits["label"].dtype, pd.CategoricalDtype)
    splits["class_index"] = label if compact else label.astype(np.int64)
    splits["split"] = split if compact else pd.Series(split, dtype="str")
    optional = [name for name in ("group", "sha256") if name in splits]
    return check_splits(splits[["path", "label", "class_index", "split", *optional]])


def move_seen(splits: pd.DataFrame, seen: Collection[str]) -> tuple[pd.DataFrame, int]:
    """Return the splits without test images that a model has seen, and how many were moved.

    They go to the training split, with all of their group and all copies of them.

    Args:
        splits: of `split_dataset`, with sha256 as 64 hexadecimal digits.
        seen: SHA-256 of the images that the model was trained or validated on.

    Raises:
        DataError: when no test image of a class is left.
    """
    in_test = splits["split"] == "test"
    unit = splits["group"] if "group" in splits else splits["sha256"]
    moved = in_test & unit.isin(unit[in_test & splits["sha256"].isin(seen)])
    if not moved.any():
        return splits, 0
    emptied = set(splits["label"]) - set(splits["label"][in_test & ~moved])
    if emptied:
        raise DataError(
            f"model.weights: the classifier was trained or validated on {moved.sum()} of"
            f" {in_test.sum()} test images, among them all of class '{min(emptied)}'. Set"
            " dataset.seed and dataset.fractions to those of its run, so that both have the same"
            " test images, or add new images."
        )
    train = splits["split"].mask(moved, "train").astype(splits["split"].dtype)
    return check_splits(splits.assign(split=train)), int(moved.sum())


def class_names(splits: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes of a table of splits in the order of their indices."""
    pairs = splits[["class_index", "label"]].drop_duplicates().sort_values("class_index")
    return tuple(pairs["label"].unique())


def check_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Return the table of splits unchanged if it is sound; the catalog calls this on every load.

    Raises:
        DataError: when an image or a group is in two splits, or a split lacks a class.
    """
    split, names = _codes(splits["split"])
    units = [] if _is_sorted(splits["path"]) else ["path"]  # in order, there is none twice
    for unit in (*units, *(["group"] if "group" in splits else [])):
        codes, _ = _codes(splits[unit])
        pairs = np.unique(codes.astype(np.int64) * len(names) + split) // len(names)
        torn = pairs[1:][pairs[1:] == pairs[:-1]]
        if len(torn):
            first = splits[unit].iloc[int((codes == torn[0]).argmax())]
            raise DataError(f"The {unit} '{first}' is in more than one split.")
    label, classes = _codes(splits["label"])
    for name in SPLITS:
        # Not np.bincount, which makes numbers of 8 bytes of all labels.
        there = np.unique(label[split == names.index(name)]) if name in names else label[:0]
        lacking = np.setdiff1d(np.arange(len(classes)), there)
        if len(lacking):
            raise DataError(
                f"The {name} split has no image of class '{classes[lacking[0]]}'. Add images of"
                " this class or change dataset.fractions."
            )
    return splits


def _is_sorted(paths: pd.Series) -> bool:
    """Return whether each path comes after the one before it."""
    return is_increasing(texts_of(paths))


def _codes(column: pd.Series) -> tuple[np.ndarray, list[Any]]:
    """Return a number (N,) for each value and the values, in order, that they stand for."""
    if isinstance(column.dtype, pd.CategoricalDtype):
        codes, names = column.cat.codes.to_numpy(), column.cat.categories.tolist()
        used = sorted(pd.unique(codes), key=lambda code: names[code])
        rank = np.zeros(len(names), codes.dtype)
        rank[used] = np.arange(len(used))
        return rank[codes], [names[code] for code in used]
    codes, values = pd.factorize(column, sort=True)
    return codes, values.tolist()


def _fill_splits(
    manifest: pd.DataFrame,
    label: np.ndarray,
    classes: list[str],
    fractions: SplitFractions,
    seed: int,
) -> np.ndarray:
    """Return the split of every image by its place in `SPLITS`, keeping what the data brings."""
    train, val, test = range(len(SPLITS))
    position = _positions(manifest, seed)
    if "split" not in manifest:
        shares = {test: fractions.test, val: fractions.val}
        return _carve(position, label, classes, shares)
    given = pd.Categorical(manifest["split"], SPLITS).codes.copy()
    if test not in given:
        given[given == val] = test
    if train not in given or test not in given:
        found = [SPLITS[code] for code in np.unique(given)]
        raise DataError(
            "dataset.root: a data set that brings its own splits needs train and one of val and"
            f" test, found {', '.join(sorted(found))}."
        )
    if val not in given:
        rows = given == train
        shares = {val: fractions.val / (fractions.train + fractions.val)}
        given[rows] = _carve(position[rows], label[rows], classes, shares)
    return given


def _positions(manifest: pd.DataFrame, seed: int) -> np.ndarray:
    """Return where the group of each image lies between 0 and 2^64, (N,) uint64."""
    if "group" in manifest:
        codes, names = _codes(manifest["group"])
        return np.array([_position(str(name), seed) for name in names], np.uint64)[codes]
    if "sha256" in manifest:
        digests = pa.chunked_array(pa.array(manifest["sha256"]))
        keys = (d if isinstance(d, str) else d.hex() for d in _values(digests))
    else:
        paths = texts_of(manifest["path"])
        folder = os.path.commonpath([paths[0].as_py(), paths[-1].as_py()])  # they are sorted
        keys = (path[len(folder) :] for path in _values(paths))
    return np.fromiter((_position(key, seed) for key in keys), np.uint64, len(manifest))


def _position(key: str, seed: int) -> int:
    data = key.encode("utf-8", "surrogateescape")
    digest = hashlib.blake2b(data, digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big")


def _values(column: pa.ChunkedArray) -> Iterator[Any]:
    """Yield the values of a column, of which only some are Python objects at a time."""
    for batch in pa.table([column], ["values"]).to_batches(BATCH):
        yield from batch.column(0).to_pylist()


def _carve(
    position: np.ndarray, label: np.ndarray, classes: list[str], shares: dict[int, float]
) -> np.ndarray:
    """Return the split (N,) int8: train for all images but the given shares of each class.

    The first share is taken from the lowest positions, another from the highest: a class that grows
    moves the images next to these two borders only.

    Args:
        position: of the group of every image; equal ones are one group.
        label: number of its class.
        classes: their names.
        shares: of one or two splits, by their place in `SPLITS`.
    """
    positions, place, sizes = np.unique(position, return_inverse=True, return_counts=True)
    label_of_group = _labels_of_groups(place, label)
    split_of_group = np.zeros(len(positions), np.int8)
    for number, name in enumerate(classes):  # to sort them once takes 16 bytes for every group
        members = np.flatnonzero(label_of_group == number)  # by position
        if not len(members):
            continue
        if len(members) <= len(shares):
            raise DataError(_too_few(name, int(sizes[members].sum()), len(members), shares))
        spare = len(members) - 1  # one group always stays in train
        for idx, (split, share) in enumerate(shares.items()):
            ordered = members if idx == 0 else members[::-1]
            images = np.cumsum(sizes[ordered])
            nearest = int(np.abs(images - share * images[-1]).argmin()) + 1
            room = spare - (len(shares) - idx - 1)  # and one is left for every split to come
            count = min(nearest, room)
            split_of_group[ordered[:count]] = split
            spare -= count
    return split_of_group[place]


def _too_few(name: str, images: int, groups: int, shares: dict[int, float]) -> str:
    """Return the message for a class that cannot be split, with the cause and what to do."""
    made = ", ".join(["train", *sorted((SPLITS[split] for split in shares), key=SPLITS.index)])
    needed = f"to split into {made}; at least {len(shares) + 1} are needed."
    if images == groups:
        return f"dataset.root: class '{name}' has {images} image(s) {needed}"
    return (
        f"dataset.root: class '{name}' has {images} image(s) in {groups} group(s) {needed} Images"
        " of one `group` of the data, copies of an image, and images that look the same are never"
        " torn apart. If they only look the same, as those of a fixed camera do, set"
        " screening.near_duplicates=report."
    )


def _labels_of_groups(place: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each group, the first of equals; `place` numbers groups."""
    classes = int(label.max(initial=0)) + 1
    pairs, counts = np.unique(place * classes + label, return_counts=True)
    groups, labels = np.divmod(pairs, classes)
    order = np.lexsort((labels, -counts, groups))
    firsts = order[np.diff(groups[order], prepend=-1) > 0]
    return labels[firsts]
