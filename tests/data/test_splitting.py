"""Laws that every split obeys."""

import hashlib
import re

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thawline.data.splitting import SPLITS, check_splits, class_names, move_seen, split_dataset
from thawline.errors import DataError
from thawline.options import SplitFractions

FRACTIONS = SplitFractions()


def manifest_of(counts: dict[str, int], **columns: list) -> pd.DataFrame:
    labels = [label for label, count in counts.items() for _ in range(count)]
    paths = [f"/photos/{idx:05d}.jpg" for idx in range(len(labels))]
    return pd.DataFrame({"path": paths, "label": labels, **columns})


names = st.text("abcdefgh", min_size=1)
counts = st.dictionaries(names, st.integers(3, 60), min_size=2, max_size=6)


@settings(max_examples=30)
@given(counts, st.integers(0, 2**32 - 1))
def test_splits_hold_every_image_once_and_every_class_everywhere(
    counts: dict[str, int], seed: int
) -> None:
    manifest = manifest_of(counts)
    splits = split_dataset(manifest, FRACTIONS, seed)
    assert splits["path"].is_unique
    assert set(splits["split"]) == set(SPLITS)
    assert (splits.groupby("split")["label"].nunique() == len(counts)).all()
    after, before = (sorted(zip(t["path"], t["label"], strict=True)) for t in (splits, manifest))
    assert after == before
    for label, size in counts.items():
        held = splits[splits["label"] == label]["split"].value_counts()
        for name in ("val", "test"):
            assert abs(held[name] - size * 0.15) <= 1


@settings(max_examples=30)
@given(counts, st.integers(0, 1000), st.integers(1, 3))
def test_a_group_is_never_torn_apart(counts: dict[str, int], seed: int, size: int) -> None:
    manifest = manifest_of(counts)
    manifest["group"] = [f"{label}-{idx // size}" for idx, label in enumerate(manifest["label"])]
    if manifest.groupby("label")["group"].nunique().min() < 3:
        with pytest.raises(DataError, match="at least 3 are needed"):
            split_dataset(manifest, FRACTIONS, seed)
        return
    splits = split_dataset(manifest, FRACTIONS, seed)
    assert (splits.groupby("group")["split"].nunique() == 1).all()


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    manifest = manifest_of({"ant": 40, "bee": 30})
    first = split_dataset(manifest, FRACTIONS, seed=1)
    turned = manifest[::-1].reset_index(drop=True)
    pd.testing.assert_frame_equal(first, split_dataset(turned, FRACTIONS, seed=1))
    text = manifest["label"].dtype  # object, before pandas 3
    assert first.dtypes[["label", "class_index", "split"]].tolist() == [text, "int64", text]
    assert not first["split"].equals(split_dataset(manifest, FRACTIONS, seed=2)["split"])


def hashed(manifest: pd.DataFrame) -> pd.DataFrame:
    """Return a manifest with a content for each image that follows from its name."""
    names = manifest["path"].str.rpartition("/")[2]
    return manifest.assign(sha256=[hashlib.sha256(n.encode()).hexdigest() for n in names])


@pytest.mark.parametrize(
    ("before", "after", "stay"),
    [(200, 201, 0.98), (200, 202, 0.98), (1000, 1010, 0.98), (100, 200, 0.9), (200, 400, 0.9)],
)
@pytest.mark.parametrize("kind", ["sha256", "path", "group"])
@pytest.mark.parametrize("seed", range(3))
def test_images_stay_in_their_split_when_others_are_added(
    before: int, after: int, stay: float, kind: str, seed: int
) -> None:
    classes, size = ("ant", "bee", "wasp"), 2 if kind == "group" else 1
    rows = [(f"/new/{c}/{n:04d}.jpg", c, n) for c in classes for n in range(size * after)]
    manifest = pd.DataFrame(rows, columns=["path", "label", "number"])
    if kind == "sha256":
        manifest = hashed(manifest)
        manifest["sha256"] = manifest["label"] + manifest["sha256"].str[4:]
    if kind == "group":
        manifest["group"] = manifest["label"] + (manifest["number"] // 2).astype(str)
    old = manifest[manifest["number"] < size * before].drop(columns="number")
    first = split_dataset(old, FRACTIONS, seed).set_index("path")["split"]
    grown = split_dataset(manifest.drop(columns="number"), FRACTIONS, seed)
    again = grown.set_index("path")["split"]
    assert (again[first.index] == first).mean() >= stay


def test_a_content_has_its_split_whatever_it_is_called_and_wherever_it_lies() -> None:
    manifest = hashed(manifest_of({"ant": 40, "bee": 30}))
    moved = manifest.assign(path="/elsewhere" + manifest["path"].str[::-1])
    splits = [split_dataset(table, FRACTIONS, 1) for table in (manifest, moved)]
    first, second = (table.set_index("sha256")["split"] for table in splits)
    assert (second[first.index] == first).all()


@settings(max_examples=30)
@given(st.dictionaries(names, st.integers(20, 80), min_size=2, max_size=4), st.integers(0, 1000))
def test_every_class_has_its_fractions_within_one_image(counts: dict[str, int], seed: int) -> None:
    splits = split_dataset(hashed(manifest_of(counts)), FRACTIONS, seed)
    held = splits.groupby(["label", "split"]).size()
    for label, size in counts.items():
        for split in SPLITS:
            assert abs(held[label, split] - getattr(FRACTIONS, split) * size) <= 1


def test_test_images_that_a_model_has_seen_become_training_images_with_their_group() -> None:
    manifest = hashed(manifest_of({"ant": 40, "bee": 40}))
    splits = split_dataset(manifest, FRACTIONS, seed=0)
    test = splits[splits["split"] == "test"]
    seen = {*test["sha256"].iloc[[0, 7]], *splits["sha256"][splits["split"] == "train"]}
    moved, count = move_seen(splits, seen)
    assert count == 2 and not set(moved["sha256"][moved["split"] == "test"]) & seen
    unmoved = splits.index.difference(test.index[[0, 7]])
    assert moved["split"][unmoved].equals(splits["split"][unmoved])
    assert moved["split"][test.index[0]] == "train"
    assert move_seen(splits, {"0" * 64})[0] is splits
    pairs = manifest.assign(group=[f"{n // 2}" for n in range(80)])
    grouped = split_dataset(pairs, FRACTIONS, seed=0)
    first = grouped["sha256"][grouped["split"] == "test"].iloc[0]
    assert move_seen(grouped, {first})[1] == 2
    bees = set(splits["sha256"][(splits["split"] == "test") & (splits["label"] == "bee")])
    with pytest.raises(DataError, match=r"6 of 12 test images, among them all of class 'bee'"):
        move_seen(splits, bees)


def test_class_order_is_alphabetical() -> None:
    splits = split_dataset(manifest_of({"wasp": 9, "ant": 9, "bee": 9}), FRACTIONS, seed=0)
    pairs = set(zip(splits["class_index"], splits["label"], strict=True))
    assert pairs == {(0, "ant"), (1, "bee"), (2, "wasp")}
    assert class_names(splits.sample(frac=1, random_state=0)) == ("ant", "bee", "wasp")


@pytest.mark.parametrize(
    ("shares", "size", "expected"),
    [
        ((0.7, 0.15, 0.15), 3, (1, 1, 1)),
        ((0.7, 0.15, 0.15), 20, (14, 3, 3)),
        ((0.5, 0.3, 0.2), 10, (5, 3, 2)),
        ((0.9, 0.05, 0.05), 4, (2, 1, 1)),
        ((0.02, 0.95, 0.03), 5, (1, 3, 1)),
        ((0.02, 0.03, 0.95), 5, (1, 1, 3)),
    ],
)
def test_shares_are_kept_as_far_as_every_split_has_an_image(
    shares: tuple, size: int, expected: tuple
) -> None:
    fractions = SplitFractions(**dict(zip(SPLITS, shares, strict=True)))
    splits = split_dataset(manifest_of({"ant": size, "bee": size}), fractions, seed=0)
    for _, of_class in splits.groupby("label"):
        assert tuple(of_class["split"].value_counts()[list(SPLITS)]) == expected


@pytest.mark.parametrize("seed", range(3))
def test_groups_with_an_image_of_every_class_are_shared_out_among_the_splits(seed: int) -> None:
    rooms = {"bathroom": 60, "bedroom": 60, "kitchen": 59}
    houses = [f"house_{idx}" for count in rooms.values() for idx in range(count)]
    splits = split_dataset(manifest_of(rooms, group=houses), FRACTIONS, seed)
    held = splits.groupby(["split", "label"]).size().unstack()
    assert (held.loc[["val", "test"]] >= 6).all(axis=None)
    assert (held.loc["train"] >= 36).all()
    assert (splits.groupby("group")["split"].nunique() == 1).all()


def test_a_group_of_several_classes_counts_to_the_most_frequent() -> None:
    labels = ["ant", "bee", "bee"] * 4 + ["ant"] * 4
    groups = [f"{idx // 3}" for idx in range(12)] + [f"ant {idx}" for idx in range(4)]
    manifest = manifest_of({"ant": 16}, group=groups).assign(label=labels)
    splits = split_dataset(manifest, FRACTIONS, seed=0)
    assert list(splits.columns) == ["path", "label", "class_index", "split", "group"]
    mixed = splits[splits["label"] == "bee"].groupby("group")["split"].first()
    alone = splits[splits["group"].str.startswith("ant")]["split"]
    for held in (mixed, alone):
        assert sorted(held) == ["test", "train", "train", "val"]


def test_given_splits_are_kept() -> None:
    given = ["train", "val", "test"] * 6
    splits = split_dataset(manifest_of({"ant": 9, "bee": 9}, split=given), FRACTIONS, seed=0)
    assert list(splits["split"]) == given


def test_a_given_val_without_test_becomes_the_test_split() -> None:
    given = (["train"] * 20 + ["val"] * 5) * 2
    manifest = manifest_of({"ant": 25, "bee": 25}, split=given)
    splits = split_dataset(manifest, FRACTIONS, seed=0)
    was_val = manifest["split"] == "val"
    assert (splits["split"][was_val] == "test").all()
    carved = splits["split"][~was_val].value_counts()
    assert carved.to_dict() == {"train": 32, "val": 8}  # 0.15 / 0.85 of 20, from each class


UNSPLITTABLE = [
    (manifest_of({"ant": 9}),
     "dataset.root: a classifier needs at least two classes, found 1 (ant). Put the images of each"
     " class into a folder of its own."),
    (manifest_of({"ant": 9, "bee": 2}),
     "dataset.root: class 'bee' has 2 image(s) to split into train, val, test; at least 3 are"
     " needed."),
    (manifest_of({"ant": 9, "bee": 9}, group=["a", "b", "c"] * 3 + ["d"] * 9),
     "class 'bee' has 9 image(s) in 1 group(s) to split into train, val, test; at least 3 are"
     " needed. Images with the same `group`, copies of an image, and images that look alike are"
     " never split up. If they only look alike, as those of a fixed camera do, set"
     " screening.near_duplicates=report."),
    (manifest_of({"ant": 3, "bee": 2}, split=["train", "train", "test", "train", "test"]),
     "class 'bee' has 1 image(s) to split into train, val; at least 2 are"),
    (manifest_of({"ant": 2, "bee": 2}, split=["val", "test"] * 2),
     "dataset.root: a data set that brings its own splits needs train and one of val and test,"
     " found test, val."),
    (manifest_of({"ant": 2, "bee": 2}, split=["train"] * 4), "test, found train."),
    (manifest_of({"ant": 2, "bee": 2}, split=["train", "val", "test", "train"]),
     "The val split has no image of class 'bee'. Add images of this class or change"
     " dataset.fractions."),
]  # fmt: skip


@pytest.mark.parametrize(("manifest", "said"), UNSPLITTABLE)
def test_what_cannot_be_split_is_refused(manifest: pd.DataFrame, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)):
        split_dataset(manifest, FRACTIONS, seed=0)


@pytest.mark.parametrize("unit", ["path", "group"])
def test_an_image_or_group_in_two_splits_is_refused(unit: str) -> None:
    manifest = manifest_of({"ant": 9, "bee": 9}, group=[f"group {idx}" for idx in range(18)])
    splits = split_dataset(manifest, FRACTIONS, seed=0)
    assert check_splits(splits) is splits
    other = {"train": "test", "val": "train", "test": "train"}
    again = splits.head(1).assign(split=other[splits["split"].iloc[0]])
    again = again.assign(**dict.fromkeys({"path", "group"} - {unit}, "another"))
    said = f"The {unit} '{splits[unit].iloc[0]}' is in more than one split."
    with pytest.raises(DataError, match=re.escape(said)):
        check_splits(pd.concat([splits, again]))


@pytest.mark.parametrize("split", SPLITS)
def test_a_table_without_a_split_is_refused(split: str) -> None:
    splits = split_dataset(manifest_of({"ant": 9, "bee": 9}), FRACTIONS, seed=0)
    with pytest.raises(DataError, match=f"The {split} split has no image of class 'ant'"):
        check_splits(splits[splits["split"] != split])
