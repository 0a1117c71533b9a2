"""Split a manifest of images into train, val and test."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from thawline.errors import DataError
from thawline.images import SPLITS
from thawline.manifests import is_increasing, texts_of
from thawline.options import SplitFractions


def split_dataset(manifest: pd.DataFrame, fractions: SplitFractions, seed: int) -> pd.DataFrame:
    """Return the table of splits: path, label, class_index, split and, if given, group and sha256.

    Images without a split of their own are split class by class (stratified), with at least one
    group of every class in every split; without a `group` column each image is a group of its own.
    A group counts to the class that most of its images have and is never torn apart, so with large
    groups the shares are approximate. Where the data brings its own splits they are kept, and what
    is missing is made so that the reported number never chose the model: a given `val` without
    `test` becomes the test split, and validation is carved out of `train`.

    Args:
        manifest: path, label and, if the data brings them, split, group and sha256; one row an
            image. Where the labels are categories, so are the splits, and a manifest in the order
            of its paths is not copied: so ten million rows fit into memory.
        fractions: shares of train, val and test.
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
    codes = _fill_splits(splits, label, classes, fractions, np.random.default_rng(seed))
    split = pd.Categorical.from_codes(codes, pd.Index(SPLITS, dtype="str"))
    compact = isinstance(splits["label"].dtype, pd.CategoricalDtype)
    splits["class_index"] = label if compact else label.astype(np.int64)
    splits["split"] = split if compact else pd.Series(split, dtype="str")
    optional = [name for name in ("group", "sha256") if name in splits]
    return check_splits(splits[["path", "label", "class_index", "split", *optional]])


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
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the split of every image by its place in `SPLITS`, keeping what the data brings."""
    train, val, test = range(len(SPLITS))
    unit = "group" if "group" in manifest else "path"
    alone = unit == "path" and _is_sorted(manifest["path"])
    group = None if alone else _codes(manifest[unit])[0]
    if "split" not in manifest:
        shares = {val: fractions.val, test: fractions.test}
        return _carve(group, label, classes, shares, rng)
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
        some = None if group is None else group[rows]
        given[rows] = _carve(some, label[rows], classes, shares, rng)
    return given


def _carve(
    group: np.ndarray | None,
    label: np.ndarray,
    classes: list[str],
    shares: dict[int, float],
    rng: np.random.Generator,
) -> np.ndarray:
    """Return the split (N,) int8: train for all images but the given shares of a class's groups.

    Args:
        group: number of the group of every image; None: each is one of its own.
        label: number of its class.
        classes: their names.
        shares: of a split, by its place in `SPLITS`.
        rng: shuffles.
    """
    label_of_group, place = (label, None) if group is None else _labels_of_groups(group, label)
    split_of_group = np.zeros(len(label_of_group), np.int8)
    for number, name in enumerate(classes):  # to sort them once takes 16 bytes for every group
        members = np.flatnonzero(label_of_group == number)
        if not len(members):
            continue
        if len(members) <= len(shares):
            made = ", ".join(["train", *(SPLITS[split] for split in shares)])
            raise DataError(
                f"dataset.root: class '{name}' has {len(members)} image(s) or group(s) to split"
                f" into {made}; at least {len(shares) + 1} are needed."
            )
        shuffled = rng.permutation(members)
        spare = len(members) - 1  # one group always stays in train
        for later, (split, share) in enumerate(shares.items(), start=1):
            room = spare - (len(shares) - later)  # and one is left for every split to come
            count = min(max(1, round(share * len(members))), room)
            split_of_group[shuffled[:count]] = split
            shuffled, spare = shuffled[count:], spare - count
    return split_of_group if place is None else split_of_group[place]


def _labels_of_groups(group: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the most frequent label of each group, the first of equals, and each image's group."""
    _, place = np.unique(group, return_inverse=True)
    classes = int(label.max(initial=0)) + 1
    pairs, counts = np.unique(place * classes + label, return_counts=True)
    groups, labels = np.divmod(pairs, classes)
    order = np.lexsort((labels, -counts, groups))
    firsts = order[np.diff(groups[order], prepend=-1) > 0]
    return labels[firsts], place
