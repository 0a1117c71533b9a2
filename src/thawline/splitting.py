"""Split a manifest of images into train, val and test."""

from __future__ import annotations

import numpy as np
import pandas as pd

from thawline.errors import DataError
from thawline.images import SPLITS
from thawline.options import SplitFractions


def split_dataset(manifest: pd.DataFrame, fractions: SplitFractions, seed: int) -> pd.DataFrame:
    """Return the table of splits: path, label, class_index, split and, if given, group.

    Images without a split of their own are split class by class (stratified), with at least one
    group of every class in every split; without a `group` column each image is a group of its own.
    A group counts to the class that most of its images have and is never torn apart, so with large
    groups the shares are approximate. Where the data brings its own splits they are kept, and what
    is missing is made so that the reported number never chose the model: a given `val` without
    `test` becomes the test split, and validation is carved out of `train`.

    Args:
        manifest: path, label and, if the data brings them, split and group; one row an image.
        fractions: shares of train, val and test.
        seed: the same seed gives the same table.

    Raises:
        DataError: when a class has too few images, or there are fewer than two classes.
    """
    splits = manifest.sort_values("path", ignore_index=True)
    classes = sorted(splits["label"].unique())
    if len(classes) < 2:  # noqa: PLR2004
        raise DataError(
            f"dataset.root: a classifier needs at least two classes, found {len(classes)}"
            f" ({', '.join(classes)}). Put the images of each class into a folder of its own."
        )
    splits["class_index"] = splits["label"].map({name: idx for idx, name in enumerate(classes)})
    splits["split"] = _fill_splits(splits, fractions, np.random.default_rng(seed))
    columns = ["path", "label", "class_index", "split"]
    return check_splits(splits[columns + ["group"] * ("group" in splits)])


def class_names(splits: pd.DataFrame) -> tuple[str, ...]:
    """Return the classes of a table of splits in the order of their indices."""
    return tuple(splits.sort_values("class_index")["label"].unique())


def check_splits(splits: pd.DataFrame) -> pd.DataFrame:
    """Return the table of splits unchanged if it is sound; the catalog calls this on every load.

    Raises:
        DataError: when an image or a group is in two splits, or a split lacks a class.
    """
    for unit in ("path", *(["group"] if "group" in splits else [])):
        in_two = splits.groupby(unit)["split"].nunique().loc[lambda count: count > 1]
        if len(in_two):
            raise DataError(f"The {unit} '{in_two.index[0]}' is in more than one split.")
    counts = splits.groupby(["label", "split"]).size().unstack(fill_value=0)
    for split in SPLITS:
        lacking = counts.index[counts[split] == 0] if split in counts else counts.index
        if len(lacking):
            raise DataError(
                f"The {split} split has no image of class '{lacking[0]}'. Add images of this class"
                " or change dataset.fractions."
            )
    return splits


def _fill_splits(
    manifest: pd.DataFrame, fractions: SplitFractions, rng: np.random.Generator
) -> pd.Series:
    """Return the split of every image, keeping those that the data brings."""
    if "split" not in manifest:
        return _carve(manifest, {"val": fractions.val, "test": fractions.test}, rng)
    given = manifest["split"].copy()
    if "test" not in set(given):
        given = given.replace("val", "test")
    if "train" not in set(given) or "test" not in set(given):
        raise DataError(
            "dataset.root: a data set that brings its own splits needs train and one of val and"
            f" test, found {', '.join(sorted(set(given)))}."
        )
    if "val" not in set(given):
        train = manifest[given == "train"]
        share = fractions.val / (fractions.train + fractions.val)
        given.loc[train.index] = _carve(train, {"val": share}, rng)
    return given


def _carve(manifest: pd.DataFrame, shares: dict[str, float], rng: np.random.Generator) -> pd.Series:
    """Return train for every image but the given shares of each class's groups."""
    group = manifest["group"] if "group" in manifest else manifest["path"]
    labels = manifest.groupby(group)["label"].agg(lambda names: names.mode().iloc[0])
    split_of_group = pd.Series("train", index=labels.index)
    for label, members in labels.groupby(labels):
        if len(members) <= len(shares):
            raise DataError(
                f"dataset.root: class '{label}' has {len(members)} image(s) or group(s) to split"
                f" into {', '.join(['train', *shares])}; at least {len(shares) + 1} are needed."
            )
        shuffled = rng.permutation(members.index.to_numpy())
        spare = len(members) - 1  # one group always stays in train
        for later, (split, share) in enumerate(shares.items(), start=1):
            room = spare - (len(shares) - later)  # and one is left for every split to come
            count = min(max(1, round(share * len(members))), room)
            split_of_group[shuffled[:count]] = split
            shuffled, spare = shuffled[count:], spare - count
    return group.map(split_of_group)
