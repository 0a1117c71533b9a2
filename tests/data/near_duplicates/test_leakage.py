"""Images that are the same stay in one split, and a run stops if they do not."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import divide_photos
from thawline.data.decoding import hash_files
from thawline.data.near_duplicates.leakage import (
    check_leakage,
    find_cross_split_duplicates,
    group_alike,
)
from thawline.data.near_duplicates.search import find_pairs
from thawline.data.screening.screen import screen_images
from thawline.data.sources import find_images
from thawline.data.splitting import SPLITS, split_dataset
from thawline.errors import DataError
from thawline.options import DatasetOptions, ScreeningOptions

NO_PAIRS = pd.DataFrame({name: [] for name in ("sha256", "other_sha256", "distance", "kind")})


def test_the_same_file_twice_is_exact_and_images_of_one_split_are_no_matter(
    splits: pd.DataFrame,
) -> None:
    hashes = hash_files(splits["path"].tolist())
    train, val, test = (splits.index[splits["split"] == name] for name in SPLITS)
    hashes[train[1]] = hashes[train[0]]
    hashes[val[0]] = hashes[test[0]] = hashes[train[2]]
    exact = find_cross_split_duplicates(splits.assign(sha256=hashes), NO_PAIRS)
    assert exact["path"].tolist() == sorted(splits["path"][[val[0], test[0]]])
    assert set(exact["other_path"]) <= set(splits["path"][[val[0], train[2]]])
    assert set(exact["distance"]) == {0} and set(exact["kind"]) == {"exact"}


@settings(max_examples=40)
@given(data=st.data())
def test_what_belongs_together_has_one_group_and_given_groups_are_not_torn_apart(
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(6, 30))
    codes = data.draw(st.lists(st.sampled_from("abcdefghijkl"), min_size=count, max_size=count))
    images = pd.DataFrame({"path": [f"{n:02d}.png" for n in range(count)], "sha256": codes})
    if given_groups := data.draw(st.booleans()):
        images["group"] = [data.draw(st.sampled_from("123456789")) for _ in codes]
    if own_splits := data.draw(st.booleans()):
        images["split"] = [data.draw(st.sampled_from(SPLITS)) for _ in codes]
    near = data.draw(st.lists(st.tuples(*[st.sampled_from("abcdefghijkl")] * 2), max_size=4))
    pairs = pd.DataFrame(near, columns=["sha256", "other_sha256"])
    pairs = pairs.assign(distance=0.01, kind=["near"] * len(pairs))
    grouped = group_alike(images, pairs)
    group = grouped["group"] if "group" in grouped else grouped["path"]
    side = images["split"] if own_splits else pd.Series("", index=images.index)
    assert (group.groupby([side, images["sha256"]]).nunique() == 1).all()
    for one, two in near:
        for name in side.unique():
            both = group[images["sha256"].isin([one, two]) & (side == name)]
            assert both.nunique() <= 1
    if given_groups:
        assert (group.groupby(images["group"]).nunique() == 1).all()
    elif not near and images["sha256"].is_unique:
        assert grouped is images
    if not given_groups and not near:  # and nothing else is joined
        assert group.nunique() == len(set(zip(side, codes, strict=True)))


def test_a_similar_image_does_not_hide_one_that_counts_as_the_same() -> None:
    images = [("a.png", "bad", "train"), ("b.png", "good", "train"), ("c.png", "good", "test")]
    splits = pd.DataFrame(images, columns=["path", "label", "split"]).assign(sha256=[*"abc"])
    rows = [("a", "c", 0.001, "similar"), ("b", "c", 0.002, "near")]
    pairs = pd.DataFrame(rows, columns=NO_PAIRS.columns)
    for some, kind in ((pairs, "near"), (pairs[:1], "similar")):
        assert find_cross_split_duplicates(splits, some)["kind"].tolist() == [kind]


@pytest.mark.parametrize("folder", ["a", "z"])
def test_the_name_of_a_group_depends_on_contents_or_on_the_data_s_own_groups_only(
    folder: str,
) -> None:
    codes = ["c", "b", "d", "b", "a"]
    pairs = pd.DataFrame({"sha256": ["d"], "other_sha256": ["c"], "distance": 0, "kind": "near"})
    images = pd.DataFrame({"path": [f"{folder}/{n}.png" for n in range(5)], "sha256": codes})
    assert group_alike(images, pairs)["group"].tolist() == ["c", "b", "c", "b", "a"]
    own = images.assign(group=["2", "1", "10", "3", "4"])
    assert group_alike(own, pairs)["group"].tolist() == ["10", "1", "10", "1", "4"]


def test_groups_of_two_splits_have_different_names() -> None:
    images = pd.DataFrame({"path": ["0.png", "1.png", "2.png", "3.png"], "sha256": list("aabb")})
    images["split"] = ["train", "test", "train", "train"]
    grouped = group_alike(images, NO_PAIRS.astype("str"))
    assert grouped["group"].tolist() == ["a train", "a test", "b", "b"]


@pytest.mark.parametrize("kind", ["exact", "near"])
def test_a_test_image_that_is_in_training_too_stops_the_run(
    photos: Path, tmp_path: Path, kind: str
) -> None:
    root = divide_photos(photos, tmp_path / "photos", train=range(10), test=range(10, 20))
    leak = root / "test" / "flower" / "leak.jpg"
    if kind == "exact":
        shutil.copy(photos / "flower" / "03.jpg", leak)
    else:
        Image.open(photos / "flower" / "03.jpg").save(leak, quality=60)
    clean, _ = screen_images(find_images(str(root), root, root), ScreeningOptions())
    splits = split_dataset(clean, DatasetOptions().fractions, 0)
    found = find_cross_split_duplicates(splits.merge(clean[["path", "sha256"]]), find_pairs(clean))
    with pytest.raises(DataError, match=rf"leak.jpg \(flower\)(?s:.*){kind}(?s:.*)on_leak=warn"):
        check_leakage(found, ScreeningOptions())
    check_leakage(found, ScreeningOptions(on_leak="warn"))
    check_leakage(found[found["split"] != "test"], ScreeningOptions())


def test_pairs_that_only_look_alike_do_not_stop_a_run(caplog: pytest.LogCaptureFixture) -> None:
    images = {"path": ["a.png"], "label": ["good"], "split": ["test"]}
    others = {"other_path": ["b.png"], "other_label": ["bad"], "other_split": ["train"]}
    found = pd.DataFrame({**images, **others, "distance": [0.001]})
    for kind in ("similar", "uncertain"):
        check_leakage(found.assign(kind=kind), ScreeningOptions())
    assert not caplog.records
    with pytest.raises(DataError, match=r"b\.png"):
        check_leakage(found.assign(kind="near"), ScreeningOptions())
