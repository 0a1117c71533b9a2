"""No split separates images that are the same or look the same."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from thawline.data.decoding import hash_files
from thawline.data.near_duplicates.leakage import find_cross_split_duplicates, group_alike
from thawline.data.near_duplicates.pairs import MAX_SIMILAR_PER_IMAGE
from thawline.data.near_duplicates.search import find_pairs
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.options import DatasetOptions

FRACTIONS = DatasetOptions().fractions


def hashed(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(sha256=hash_files(table["path"].tolist()))


def read(*folders: Path) -> pd.DataFrame:
    """Return the images of folders by name, one class each."""
    rows = [(path.as_posix(), each.name) for each in folders for path in sorted(each.iterdir())]
    return hashed(pd.DataFrame(rows, columns=["path", "label"]))


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


def plant(images: pd.DataFrame, folder: Path, quality: int) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return splits with altered copies of training images in val and test, and their originals."""
    splits = split_dataset(images, FRACTIONS, seed=0)
    rows, originals = [], {}
    train = splits[splits["split"] == "train"].iloc[::3]
    for number, row in enumerate(train.head(60).to_dict("records")):
        kind = list(COPIES)[number % len(COPIES)]
        ending = "jpg" if kind == "recompressed" else "png"
        path = (folder / f"{number}.{ending}").as_posix()
        COPIES[kind](Image.open(row["path"]).convert("RGB")).save(path, quality=quality)
        originals[path] = row["path"]
        rows.append({**row, "path": path, "split": ("val", "test")[number % 2]})
    return hashed(pd.concat([splits, pd.DataFrame(rows)], ignore_index=True)), originals


def test_altered_copies_of_tiny_images_are_all_found_but_uncertain(
    digits: pd.DataFrame, tmp_path: Path
) -> None:
    planted, originals = plant(digits, tmp_path, quality=75)
    table = find_cross_split_duplicates(planted, find_pairs(planted))
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
    table = find_cross_split_duplicates(planted, pairs)
    assert dict(zip(table["path"], table["other_path"], strict=True)) == originals
    assert set(table["kind"]) == {"near"} and table["distance"].is_monotonic_increasing
    # Without splits of their own, no copy is separated from its original.
    grouped = group_alike(planted[["path", "label", "sha256"]], pairs)
    again = split_dataset(grouped, FRACTIONS, seed=1).merge(planted[["path", "sha256"]])
    sizes = again.groupby("group")["path"].count().value_counts().to_dict()
    assert sizes == {1: len(images) - len(originals), 2: len(originals)}
    assert find_cross_split_duplicates(again, pairs).empty


def test_few_of_the_digits_are_alike(digits: pd.DataFrame) -> None:
    pairs = find_pairs(digits)
    assert len(pairs) < 10 and set(pairs["kind"]) == {"uncertain"}
    assert group_alike(digits, pairs) is digits


def test_a_blank_image_is_like_no_other(tmp_path: Path) -> None:
    for name, gray in (("black", 0), ("white", 255), ("gray", 128)):
        Image.new("RGB", (60, 40), (gray,) * 3).save(tmp_path / f"{name}.png")
    assert find_pairs(read(tmp_path)).empty


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


TEMPLE, FLOWER = load_sample_images().images


def background(kind: str, side: int, rng: np.random.Generator) -> np.ndarray:
    """Return what a fixed camera sees, (side + 4, side + 4, 3): it moves by up to 2 px."""
    side += 4
    if kind in ("temple", "flower"):
        photograph = TEMPLE if kind == "temple" else FLOWER
        top, left = rng.integers(0, photograph.shape[0] - side), rng.integers(0, 640 - side)
        return photograph[top : top + side, left : left + side].astype(float)
    if kind == "gradient":
        light = np.linspace(60, 200, side)[:, None] * np.linspace(0.8, 1.1, side)
        texture = Image.fromarray(rng.normal(0, 10, (side // 2, side // 2)).astype(np.float32))
        gray = light + np.asarray(texture.resize((side, side), Image.Resampling.BICUBIC))
    else:  # low contrast
        shades = Image.fromarray(rng.normal(128, 6, (6, 6)).astype(np.float32))
        gray = np.asarray(shades.resize((side, side), Image.Resampling.BICUBIC))
    return np.repeat(gray[..., None], 3, axis=2)


def photograph(
    scene: np.ndarray, noise: float, rng: np.random.Generator, defective: bool = False
) -> Image.Image:
    """Return an image of a scene: shifted, lighter or darker, with noise and perhaps a defect."""
    side = len(scene) - 4
    top, left = rng.integers(0, 5, 2)
    pixels = scene[top : top + side, left : left + side].copy()
    if defective:
        top, left = rng.integers(0, side - 16), rng.integers(0, side - 22)
        pixels[top : top + 16, left : left + 22] += rng.choice([-50, 50])
    pixels = pixels * rng.uniform(0.85, 1.15) + rng.normal(0, noise, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


def save_all(images: Iterable[Image.Image], folder: Path, ending: str = "png") -> Path:
    """Save the images of one class in a new folder."""
    folder.mkdir()
    options = {"quality": 90} if ending == "jpg" else {"compress_level": 1}
    for number, image in enumerate(images):
        image.save(folder / f"{number:02d}.{ending}", **options)
    return folder


@pytest.mark.parametrize(
    ("kind", "side", "noise", "ending"),
    [
        ("temple", 160, 6, "png"),
        ("flower", 96, 3, "jpg"),
        ("flower", 256, 12, "jpg"),
        ("gradient", 128, 3, "png"),
        ("gradient", 192, 6, "jpg"),
        ("gray", 128, 3, "jpg"),
    ],
)
def test_images_of_a_fixed_camera_are_different_images(
    tmp_path: Path, kind: str, side: int, noise: float, ending: str
) -> None:
    rng = np.random.default_rng(0)
    scene = background(kind, side, rng)
    good, defective = tmp_path / "good", tmp_path / "defective"
    save_all([photograph(scene, noise, rng) for _ in range(40)], good, ending)
    save_all([photograph(scene, noise, rng, True) for _ in range(40)], defective, ending)
    images = read(good, defective)
    pairs = find_pairs(images)
    label = images.set_index("sha256")["label"]
    same_class = pairs["sha256"].map(label) == pairs["other_sha256"].map(label)
    assert set(pairs["kind"][~same_class]) <= {"similar"}
    assert (pairs["kind"] == "similar").sum() <= MAX_SIMILAR_PER_IMAGE * len(images)
    grouped = group_alike(images, pairs)
    group = grouped["group"] if "group" in grouped else grouped["path"]
    assert group[images["label"] == "good"].nunique() >= 35
    assert group[images["label"] == "defective"].nunique() >= 30
    assert (images["label"].groupby(group).nunique() == 1).all()
    split_dataset(grouped, FRACTIONS, seed=0)  # which needs groups of every class


def test_twenty_copies_of_a_photograph_are_one_image(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    original = Image.fromarray(TEMPLE)
    for number, quality in enumerate(np.linspace(50, 95, 20).astype(int)):
        scale = rng.uniform(0.6, 1)
        size = round(scale * original.width), round(scale * original.height)
        original.resize(size).save(tmp_path / f"{number:02d}.jpg", quality=int(quality))
    images = read(tmp_path)
    assert group_alike(images, find_pairs(images))["group"].nunique() == 1


@pytest.mark.parametrize(("kind", "side", "noise"), [("flower", 160, 6), ("gray", 128, 6)])
def test_copies_of_a_fixed_camera_s_image_are_linked_with_it_and_nothing_else(
    tmp_path: Path, kind: str, side: int, noise: float
) -> None:
    rng = np.random.default_rng(0)
    scene = background(kind, side, rng)
    folder = save_all([photograph(scene, noise, rng) for _ in range(12)], tmp_path / "good")
    original = Image.open(folder / "04.png")
    original.save(folder / "a.jpg", quality=85)
    original.save(folder / "b.jpg", quality=70)
    ImageOps.mirror(original).save(folder / "mirrored.png")
    images = read(folder)
    for some in (images[:14], images):  # a mirror image has no residual in common
        grouped = group_alike(some, find_pairs(some))
        linked = grouped[grouped["group"].duplicated(keep=False)]
        expected = [images["path"][4], *some["path"][12:]]
        assert sorted(linked["path"]) == sorted(expected)
        assert linked["group"].nunique() == 1


def test_copies_of_images_of_two_fixed_cameras_are_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scene = background("flower", 128, rng)
    other = scene.copy()
    other[60:72, 40:60] += 40  # it looks nearly the same
    images = [photograph(one, 6, rng) for one in (scene, other) for _ in range(20)]
    folder = save_all(images, tmp_path / "good")
    images[30].save(folder / "copy.jpg", quality=85)
    manifest = read(folder)
    grouped = group_alike(manifest, find_pairs(manifest))
    assert grouped["group"].nunique() == 40
    assert grouped["group"][40] == grouped["group"][30]


def test_a_copy_in_another_class_is_similar_unless_a_class_is_shared(
    photos: Path, tmp_path: Path
) -> None:
    paths = [str(photos / "flower" / "03.jpg"), str(tmp_path / "copy.jpg")]
    Image.open(paths[0]).save(paths[1], quality=60)
    images = hashed(pd.DataFrame({"path": paths, "label": ["flower", "temple"]}))
    assert find_pairs(images)["kind"].tolist() == ["similar"]
    assert group_alike(images, find_pairs(images)) is images
    again = images[:1].assign(label="temple")
    assert find_pairs(pd.concat([images, again]))["kind"].tolist() == ["near"]
