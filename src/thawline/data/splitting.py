"""Split a manifest of images into train, val and test."""

import hashlib
import os
from collections.abc import Collection
from itertools import chain
from typing import Any

import numpy as np
import pandas as pd

from thawline.errors import DataError
from thawline.options import SplitFractions

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(len(SPLITS))
BATCH_ROWS = 65_536  # rows that are Python objects at the same time


def split_dataset(manifest: pd.DataFrame, fractions: SplitFractions, seed: int) -> pd.DataFrame:
    """Split a manifest into train, val and test, stratified by class.

    A hash of an image's group and the seed decides its split, corrected only as far as the class
    fractions require. So images keep their split when others are added. Groups are the column
    `group`, else the content (`sha256`), else the path below the folder that all images share.

    A group is never split. It counts to the class of most of its images, so large groups make the
    fractions approximate. Every split has at least one group of every class. Splits that the data
    brings are kept. A given `val` without `test` becomes the test split, and validation images are
    drawn from `train`, so the reported accuracy never chose the model.

    The manifest has path, label and optionally split, group and sha256; one row per image.

    Returns:
        path, label, class_index, split and, if given, group and sha256, sorted by path.

    Raises:
        DataError: if there are fewer than two classes, or a class has too few images.
    """
    splits = manifest if _is_increasing(manifest["path"]) else manifest.sort_values("path")
    splits = splits.reset_index(drop=True)
    label, classes = pd.factorize(splits["label"], sort=True)
    if len(classes) <= 1:
        raise DataError(
            f"dataset.root: a classifier needs at least two classes, found {len(classes)}"
            f" ({', '.join(classes)}). Put the images of each class into a folder of its own."
            " Classes with fewer images than screening.min_images are left out."
        )
    split = _fill_splits(splits, _positions(splits, seed), label, list(classes), fractions)
    splits["class_index"] = label.astype(np.int64)
    splits["split"] = pd.Index(SPLITS, dtype="str").take(split)
    optional = [name for name in ("group", "sha256") if name in splits]
    return check_splits(splits[["path", "label", "class_index", "split", *optional]])


def move_seen(splits: pd.DataFrame, seen: Collection[str]) -> tuple[pd.DataFrame, int]:
    """Move test images that a model has seen, with their groups and copies, to the train split.

    `seen` is the SHA-256 of the images that it was trained or validated on. The number of moved
    images is returned, too.

    Raises:
        DataError: if no test image of a class remains.
    """
    in_test = splits["split"] == "test"
    unit = splits["group"] if "group" in splits else splits["sha256"]
    moved = in_test & unit.isin(unit[in_test & splits["sha256"].isin(seen)])
    if not moved.any():
        return splits, 0
    if emptied := set(splits["label"]) - set(splits["label"][in_test & ~moved]):
        raise DataError(
            f"model.weights: the classifier was trained or validated on {moved.sum()} of"
            f" {in_test.sum()} test images, among them all of class '{min(emptied)}'. Set"
            " dataset.seed and dataset.fractions to those of its run, so that both have the same"
            " test images, or add new images."
        )
    train = splits["split"].mask(moved, "train")
    return check_splits(splits.assign(split=train)), int(moved.sum())


def class_names(splits: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes of a table of splits in the order of their indices."""
    pairs = splits[["class_index", "label"]].drop_duplicates().sort_values("class_index")
    return tuple(pairs["label"].unique())


def find_groups(splits: pd.DataFrame, split: str) -> np.ndarray | None:
    """Return the group of each image in a split, (N,), or None if the table has no groups."""
    return splits.loc[splits["split"] == split, "group"].to_numpy() if "group" in splits else None


def check_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Return a valid table of splits unchanged; the catalog calls this on every load.

    Raises:
        DataError: if an image or a group is in two splits, or a split lacks a class.
    """
    for unit in ("path", "group"):
        if unit not in splits or _is_increasing(splits[unit]):  # increasing values are unique
            continue
        pairs = splits[[unit, "split"]].drop_duplicates()
        if len(in_two := pairs[unit][pairs[unit].duplicated()]):
            raise DataError(f"The {unit} '{in_two.iloc[0]}' is in more than one split.")
    classes = set(splits["label"].unique())
    for name in SPLITS:
        if lacking := classes - set(splits["label"][splits["split"] == name].unique()):
            raise DataError(
                f"The {name} split has no image of class '{min(lacking)}'. Add images of"
                " this class or change dataset.fractions."
            )
    return splits


def _is_increasing(column: pd.Series) -> bool:
    values: Any = column.astype("str").array  # a user's own table may hold categories
    return bool((values[:-1] < values[1:]).all())


def _fill_splits(
    manifest: pd.DataFrame,
    position: np.ndarray,
    label: np.ndarray,
    classes: list[str],
    fractions: SplitFractions,
) -> np.ndarray:
    """Return the split of every image as an index into `SPLITS`; splits of the data are kept."""
    if "split" not in manifest:
        return _carve(position, label, classes, {TEST: fractions.test, VAL: fractions.val})
    given = pd.Categorical(manifest["split"], SPLITS).codes.copy()
    if TEST not in given:
        given[given == VAL] = TEST
    if TRAIN not in given or TEST not in given:
        found = sorted(manifest["split"].unique())
        raise DataError(
            "dataset.root: a data set that brings its own splits needs train and one of val and"
            f" test, found {', '.join(found)}."
        )
    if VAL not in given:
        rows = given == TRAIN
        shares = {VAL: fractions.val / (fractions.train + fractions.val)}
        given[rows] = _carve(position[rows], label[rows], classes, shares)
    return given


def _positions(manifest: pd.DataFrame, seed: int) -> np.ndarray:
    """Return the position of each image's group between 0 and 2^64, (N,) uint64."""
    if "group" in manifest or "sha256" in manifest:
        keys = manifest["group" if "group" in manifest else "sha256"]
    else:
        paths = manifest["path"]  # sorted
        keys = paths.str[len(os.path.commonpath([paths.iloc[0], paths.iloc[-1]])) :]
    seeded = hashlib.blake2b(digest_size=8, key=str(seed).encode())

    def position(key: object) -> int:
        hashed = seeded.copy()  # a third faster than a new one
        hashed.update(str(key).encode("utf-8", "surrogateescape"))
        return int.from_bytes(hashed.digest())

    starts = range(0, len(keys), BATCH_ROWS)
    batches = (keys.iloc[start : start + BATCH_ROWS].tolist() for start in starts)
    return np.fromiter(map(position, chain.from_iterable(batches)), np.uint64, len(keys))


def _carve(
    position: np.ndarray, label: np.ndarray, classes: list[str], shares: dict[int, float]
) -> np.ndarray:
    """Return the split (N,) int8: train for all images but the given shares of each class.

    The first share is taken from the lowest positions and the second from the highest, so a growing
    class moves only the images next to these two borders. Equal positions are one group.
    """
    group, place, sizes = np.unique(position, return_inverse=True, return_counts=True)
    label_of_group = _labels_of_groups(group, place, label)
    by_class = np.argsort(label_of_group, kind="stable")  # and by position
    borders = np.cumsum(np.bincount(label_of_group, minlength=len(classes)))[:-1]
    split_of_group = np.full(len(sizes), TRAIN, np.int8)
    for name, members in zip(classes, np.split(by_class, borders), strict=True):
        if not len(members):
            continue
        if len(members) <= len(shares):
            raise DataError(_too_few(name, int(sizes[members].sum()), len(members), shares))
        spare = len(members) - 1  # one group stays in train
        for idx, (split, share) in enumerate(shares.items()):
            ordered = members if idx == 0 else members[::-1]
            images = np.cumsum(sizes[ordered])
            nearest = int(np.abs(images - share * images[-1]).argmin()) + 1
            count = min(nearest, spare - (len(shares) - idx - 1))  # leave one per later split
            split_of_group[ordered[:count]] = split
            spare -= count
    return split_of_group[place]


def _too_few(name: str, images: int, groups: int, shares: dict[int, float]) -> str:
    """Return the message for a class that cannot be split."""
    made = ", ".join(SPLITS[split] for split in sorted({TRAIN, *shares}))
    needed = f"to split into {made}; at least {len(shares) + 1} are needed."
    if images == groups:
        return f"dataset.root: class '{name}' has {images} image(s) {needed}"
    return (
        f"dataset.root: class '{name}' has {images} image(s) in {groups} group(s) {needed} Images"
        " with the same `group`, copies of an image, and images that look alike are never split"
        " up. If they only look alike, as those of a fixed camera do, set"
        " screening.near_duplicates=report."
    )


def _labels_of_groups(position: np.ndarray, place: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return the most frequent label of each group; `place` is its index in `position`.

    Ties are broken by the position, so that groups with one image of every class (the rooms of a
    house) are shared out among the classes.
    """
    classes = int(label.max(initial=0)) + 1
    pairs, counts = np.unique(place * classes + label, return_counts=True)
    groups, labels = np.divmod(pairs, classes)
    turn = (labels.astype(np.uint64) + position[groups]) % np.uint64(classes)
    order = np.lexsort((turn, counts))  # the best label of a group is assigned last
    label_of_group = np.empty(len(position), np.int64)
    label_of_group[groups[order]] = labels[order]
    return label_of_group
