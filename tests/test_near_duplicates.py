"""No split separates images that are the same or look the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from thawline.images import SPLITS, find_images, hash_files
from thawline.near_duplicates import find_in_two_splits, find_pairs, group_alike
from thawline.options import DatasetOptions
from thawline.splitting import split_dataset

FRACTIONS = DatasetOptions().fractions
NO_PAIRS = pd.DataFrame({name: [] for name in ("sha256", "other_sha256", "distance", "kind")})


def hashed(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(sha256=hash_files(table["path"].tolist()))


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return scikit-learn's handwritten digits, 8 px a side."""
    folder = tmp_path_factory.mktemp("digits")
    return hashed(find_images("sklearn:digits", folder, folder))


COPIES = {
    "larger": lambda image: image.resize((2 * image.width, 2 * image.height)),
    "larger, blurred": lambda image: image.resize((12, 12) if image.width == 8 else (300, 250), 2),
    "larger, in blocks": lambda image: image.resize((4 * image.width, 4 * image.height), 0),
    "recompressed": lambda image: image,
    "mirrored": ImageOps.mirror,
    "mirrored and larger": lambda image: ImageOps.mirror(image.resize((64, 64))),
}


def plant(
    images: pd.DataFrame, folder: Path, **options: int
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return splits with altered copies of training images in val and test, and their originals."""
    splits = split_dataset(images, FRACTIONS, seed=0)
    rows, originals = [], {}
    train = splits[splits["split"] == "train"].iloc[::3]
    for number, row in enumerate(train.head(60).to_dict("records")):
        kind = list(COPIES)[number % len(COPIES)]
        ending = "jpg" if kind == "recompressed" else "png"
        path = (folder / f"{number}.{ending}").as_posix()
        COPIES[kind](Image.open(row["path"]).convert("RGB")).save(path, **options)
        originals[path] = row["path"]
        rows.append({**row, "path": path, "split": ("val", "test")[number % 2]})
    return hashed(pd.concat([splits, pd.DataFrame(rows)], ignore_index=True)), originals


def test_altered_copies_of_tiny_images_are_all_found_but_uncertain(
    digits: pd.DataFrame, tmp_path: Path
) -> None:
    planted, originals = plant(digits, tmp_path, quality=75)
    table = find_in_two_splits(planted, find_pairs(planted))
    found = dict(zip(table["path"], table["other_path"], strict=True))
    assert {path: found.get(path) for path in originals} == originals
    assert len(found) < len(originals) + 5
    assert set(table["kind"]) == {"uncertain"}


def test_altered_copies_of_photographs_are_all_found_and_nothing_else(
    hymenoptera: Path, tmp_path: Path
) -> None:
    (tmp_path / "copies").mkdir()
    images = find_images(str(hymenoptera), tmp_path, tmp_path)
    planted, originals = plant(images, tmp_path / "copies", quality=30)
    pairs = find_pairs(planted)
    table = find_in_two_splits(planted, pairs)
    assert dict(zip(table["path"], table["other_path"], strict=True)) == originals
    assert set(table["kind"]) == {"near"} and table["distance"].is_monotonic_increasing
    # Without splits of their own, no copy is separated from its original.
    grouped = group_alike(planted[["path", "label", "sha256"]], pairs)
    again = split_dataset(grouped, FRACTIONS, seed=1).merge(planted[["path", "sha256"]])
    assert again.groupby("group")["path"].count().value_counts().to_dict() == {
        1: len(images) - len(originals),
        2: len(originals),
    }
    assert find_in_two_splits(again, pairs).empty


def test_the_same_file_twice_is_exact_and_images_of_one_split_are_no_matter(
    splits: pd.DataFrame,
) -> None:
    hashes = hash_files(splits["path"].tolist())
    train, val, test = (splits.index[splits["split"] == name] for name in SPLITS)
    hashes[train[1]] = hashes[train[0]]
    hashes[val[0]] = hashes[test[0]] = hashes[train[2]]
    exact = find_in_two_splits(splits.assign(sha256=hashes), NO_PAIRS)
    assert exact["path"].tolist() == sorted(splits["path"][[val[0], test[0]]])
    assert set(exact["other_path"]) <= set(splits["path"][[val[0], train[2]]])
    assert set(exact["distance"]) == {0} and set(exact["kind"]) == {"exact"}


def test_few_of_the_digits_are_alike(digits: pd.DataFrame) -> None:
    pairs = find_pairs(digits)
    assert len(pairs) < 10 and set(pairs["kind"]) == {"uncertain"}
    assert group_alike(digits, pairs) is digits


def test_a_blank_image_is_like_no_other(tmp_path: Path) -> None:
    for name, grey in (("black", 0), ("white", 255), ("grey", 128)):
        Image.new("RGB", (60, 40), (grey,) * 3).save(tmp_path / f"{name}.png")
    table = pd.DataFrame({"path": sorted(map(str, tmp_path.glob("*.png")))})
    assert find_pairs(hashed(table)).empty


@given(data=st.data())
def test_what_belongs_together_has_one_group_and_given_groups_are_not_torn_apart(
    data: st.DataObject,
) -> None:
    count = data.draw(st.integers(6, 30))
    codes = data.draw(st.lists(st.sampled_from("abcdefghijkl"), min_size=count, max_size=count))
    images = pd.DataFrame({"path": [f"{n:02d}.png" for n in range(count)], "sha256": codes})
    given_groups = data.draw(st.booleans())
    if given_groups:
        images["group"] = [data.draw(st.sampled_from("123456789")) for _ in codes]
    own_splits = data.draw(st.booleans())
    if own_splits:
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


def test_copies_stay_on_one_side(photos: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    original = sorted((root / "flower").iterdir())[0]
    shutil.copy(original, original.with_name("copy.jpg"))
    Image.open(original).save(original.with_name("copy_again.jpg"), quality=60)
    images = hashed(find_images(str(root), root, root))
    grouped = group_alike(images, find_pairs(images))
    for seed in range(10):
        splits = split_dataset(grouped, FRACTIONS, seed)
        copies = splits[splits["path"].str.contains(f"copy|flower/{original.name}")]
        assert len(copies) == 3 and copies["split"].nunique() == 1


def test_a_similar_image_does_not_hide_one_that_counts_as_the_same() -> None:
    splits = pd.DataFrame(
        {
            "path": ["a.png", "b.png", "c.png"],
            "label": ["bad", "good", "good"],
            "split": ["train", "train", "test"],
            "sha256": ["a", "b", "c"],
        }
    )
    pairs = pd.DataFrame(
        {
            "sha256": ["a", "b"],
            "other_sha256": ["c", "c"],
            "distance": [0.001, 0.002],
            "kind": ["similar", "near"],
        }
    )
    for some, kind in ((pairs, "near"), (pairs[:1], "similar")):
        assert find_in_two_splits(splits, some)["kind"].tolist() == [kind]


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
