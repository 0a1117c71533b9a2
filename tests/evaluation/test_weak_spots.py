"""Parts of the test images where a classifier is wrong more often are found, and chance is not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thawline.evaluation import weak_spots
from thawline.evaluation.weak_spots import COLUMNS, compare_parts, describe_weakest, find_weak_spots


def cues(count: int, rng: np.random.Generator) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "class": rng.choice(["ant", "bee", "wasp"], count),
            "camera": rng.choice(["Canon", "Nikon"], count),
            "brightness": rng.normal(120, 30, count),
        }
    )


@pytest.mark.parametrize("size", [1, 10])
def test_parts_that_differ_by_chance_are_called_so(size: int) -> None:
    """At most 7 % of 300 draws, of single images and of groups that are right or wrong as one."""
    false = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(200), size)
        correct = np.repeat(rng.random(200) < 0.8, size)
        table = cues(200, rng).loc[groups].reset_index(drop=True)
        false += compare_parts(correct, table, groups if size > 1 else None)["p_value"].min() < 0.05
    assert false <= 0.07 * 300


def test_a_part_that_is_often_wrong_comes_first_and_is_named() -> None:
    rng = np.random.default_rng(0)
    table = cues(300, rng)
    dark = (table["brightness"] < 105).to_numpy()
    spots = compare_parts(rng.random(300) < np.where(dark, 0.5, 0.95), table)
    assert [*spots.columns] == COLUMNS
    assert spots["of"].iloc[0] == "brightness" and spots["p_value"].iloc[0] < 0.001
    assert describe_weakest(spots).startswith("brightness ")
    assert describe_weakest(spots).endswith("; others are better beyond chance")


def test_small_classes_are_not_judged_and_a_faultless_classifier_has_no_weak_spot() -> None:
    table = pd.DataFrame({"class": ["ant"] * 30 + ["bee"] * 5})
    faultless = compare_parts(np.ones(35, dtype=bool), table)
    few = "too few test images to judge 1 of the classes (fewer than 20)"
    assert describe_weakest(faultless) == few
    assert describe_weakest(faultless.head(1)) == ""


def test_files_tell_their_size_brightness_type_and_camera(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for idx in range(80):
        bright, suffix = idx % 2, "jpg" if idx < 40 else "png"
        pixels = rng.integers(0, 60, (24 + 2 * bright, 30, 3), dtype=np.uint8) + 150 * bright
        image = Image.fromarray(pixels.astype(np.uint8))
        exif = image.getexif()
        exif[272] = "Canon" if suffix == "jpg" and idx % 3 else ""
        image.save(path := tmp_path / f"{idx}.{suffix}", exif=exif)
        wrong = bright and suffix == "png"
        rows.append((str(path), "ant", "bee" if wrong else "ant", f"house {idx // 8}"))
    predictions = pd.DataFrame(rows, columns=["path", "label", "prediction", "group"])
    spots = find_weak_spots(predictions.drop(columns="group"), seed=0)
    values = set(zip(spots["of"], spots["value"], strict=True))
    assert {("file type", "JPEG"), ("file type", "PNG"), ("camera", "Canon")} <= values
    assert ("camera", "unknown") in values
    assert {("shorter side, px", "24"), ("shorter side, px", "26")} <= values
    assert sum(of == "brightness, 0 to 255" for of, _ in values) == 3
    assert spots["of"].iloc[0] in ("file type", "shorter side, px", "brightness, 0 to 255")
    grouped = find_weak_spots(predictions, seed=0)
    assert "group" not in set(grouped["of"])  # a house has 8 images
    assert grouped["p_value"].min() >= spots["p_value"].min()


def test_classes_and_groups_count_all_images_and_files_those_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(path := tmp_path / "image.png")
    monkeypatch.setattr(weak_spots, "MAX_READ", 30)
    label, is_right = np.repeat(["ant", "bee"], 100), np.arange(200) % 4 > 0
    predictions = pd.DataFrame({"path": str(path), "label": label, "group": label})
    predictions["prediction"] = predictions["label"].where(is_right, "wasp")
    spots = find_weak_spots(predictions, seed=0)
    assert set(zip(spots["of"], spots["images"], strict=True)) == {("class", 100), ("group", 100)}
    own = pd.DataFrame({"seen": [*["old"] * 40, *["new"] * 40, *[None] * 120]})
    assert compare_parts(is_right, own)["images"].tolist() == [40, 40]
    without = compare_parts(is_right[:80], own.head(80))  # images without a value are in no part
    assert compare_parts(is_right, own)["p_value"].tolist() == without["p_value"].tolist()
