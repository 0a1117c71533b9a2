"""Laws that every split obeys."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thawline.errors import DataError
from thawline.images import SPLITS
from thawline.options import SplitFractions
from thawline.splitting import check_splits, split_dataset

FRACTIONS = SplitFractions()


def manifest_of(counts: dict[str, int], **columns: list) -> pd.DataFrame:
    labels = [label for label, count in counts.items() for _ in range(count)]
    paths = [f"/photos/{idx:05d}.jpg" for idx in range(len(labels))]
    return pd.DataFrame({"path": paths, "label": labels, **columns})


counts = st.dictionaries(
    st.text("abcdefgh", min_size=1), st.integers(3, 60), min_size=2, max_size=6
)


@given(counts, st.integers(0, 2**32 - 1))
def test_splits_hold_every_image_once_and_every_class_everywhere(
    counts: dict[str, int], seed: int
) -> None:
    manifest = manifest_of(counts)
    splits = split_dataset(manifest, FRACTIONS, seed)
    assert sorted(splits["path"]) == sorted(manifest["path"])
    assert splits["path"].is_unique
    assert set(splits["split"]) == set(SPLITS)
    assert (splits.groupby("split")["label"].nunique() == len(counts)).all()
    assert dict(zip(splits["path"], splits["label"], strict=True)) == dict(
        zip(manifest["path"], manifest["label"], strict=True)
    )
    for label, size in counts.items():
        held = splits[splits["label"] == label]["split"].value_counts()
        for name in ("val", "test"):
            assert abs(held[name] - size * 0.15) <= 1


@given(counts, st.integers(0, 1000), st.data())
def test_a_group_is_never_torn_apart(
    counts: dict[str, int], seed: int, data: st.DataObject
) -> None:
    labels = [label for label, count in counts.items() for _ in range(count)]
    size = data.draw(st.integers(1, 3))
    groups = [f"{label}-{idx // size}" for idx, label in enumerate(labels)]
    manifest = manifest_of(counts, group=groups)
    if manifest.groupby("label")["group"].nunique().min() < 3:
        with pytest.raises(DataError, match="at least 3 are needed"):
            split_dataset(manifest, FRACTIONS, seed)
        return
    splits = split_dataset(manifest, FRACTIONS, seed)
    assert (splits.groupby("group")["split"].nunique() == 1).all()


def test_the_seed_decides_and_the_order_of_the_rows_does_not() -> None:
    manifest = manifest_of({"ant": 40, "bee": 30})
    first = split_dataset(manifest, FRACTIONS, seed=1)
    pd.testing.assert_frame_equal(first, split_dataset(manifest[::-1], FRACTIONS, seed=1))
    assert not first["split"].equals(split_dataset(manifest, FRACTIONS, seed=2)["split"])


def test_class_order_is_alphabetical() -> None:
    splits = split_dataset(manifest_of({"wasp": 9, "ant": 9, "bee": 9}), FRACTIONS, seed=0)
    pairs = set(zip(splits["class_index"], splits["label"], strict=True))
    assert pairs == {(0, "ant"), (1, "bee"), (2, "wasp")}


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


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (manifest_of({"ant": 9}), "at least two classes, found 1"),
        (manifest_of({"ant": 9, "bee": 2}), "class 'bee' has 2"),
        (manifest_of({"ant": 2, "bee": 2}, split=["val", "test"] * 2), "found test, val"),
        (
            manifest_of({"ant": 2, "bee": 2}, split=["train", "val", "test", "train"]),
            "no image of class",
        ),
    ],
)
def test_what_cannot_be_split_is_refused(manifest: pd.DataFrame, said: str) -> None:
    with pytest.raises(DataError, match=said):
        split_dataset(manifest, FRACTIONS, seed=0)


def test_an_image_in_two_splits_is_refused() -> None:
    splits = split_dataset(manifest_of({"ant": 9, "bee": 9}), FRACTIONS, seed=0)
    other = {"train": "test", "val": "train", "test": "train"}
    again = splits.head(1).assign(split=other[splits["split"].iloc[0]])
    with pytest.raises(DataError, match="more than one split"):
        check_splits(pd.concat([splits, again]))
