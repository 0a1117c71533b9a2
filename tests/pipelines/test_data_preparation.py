"""Splits respect what looks alike and what a model has seen, as the options say."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from thawline.data.screening.screen import screen_images
from thawline.data.sources import find_images
from thawline.errors import DataError
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import Classifier, save_classifier
from thawline.options import DatasetOptions, ModelOptions, ScreeningOptions
from thawline.pipelines.data_preparation.nodes import split_dataset


@pytest.fixture(scope="module")
def camera(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return the manifest of 40 good and 40 defective images of one camera, and a copy of one."""
    root, rng = tmp_path_factory.mktemp("camera"), np.random.default_rng(0)
    scene = np.asarray(Image.open(photos / "temple" / "07.jpg").convert("L"), np.float32)
    for label in ("good", "defective"):
        (root / label).mkdir()
        for number in range(40):
            pixels = np.roll(scene, rng.integers(-2, 3, 2), (0, 1)) * rng.uniform(0.85, 1.15)
            if label == "defective":
                top, left = rng.integers(5, 70, 2)
                pixels[top : top + 16, left : left + 22] -= 40
            pixels += rng.normal(0, 5, pixels.shape)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
            image.save(root / label / f"{number:02d}.png")
    Image.open(root / "good" / "00.png").save(root / "good" / "copy.jpg", quality=95)
    clean, _ = screen_images(find_images(str(root), root, root), ScreeningOptions())
    return clean


def split(
    manifest: pd.DataFrame, seed: int = 0, model: ModelOptions | None = None, **screening: object
) -> tuple[pd.DataFrame, pd.DataFrame]:
    options = ScreeningOptions(**screening)
    return split_dataset(manifest, DatasetOptions(), options, model or ModelOptions(), seed)


@pytest.mark.parametrize("mode", ["group", "report", "off"])
def test_images_of_a_fixed_camera_are_split_and_what_looks_alike_is_told(
    camera: pd.DataFrame, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    splits, pairs = split(camera, near_duplicates=mode)
    assert len(splits) == 81 and set(splits["split"]) == {"train", "val", "test"}
    assert ("group" in splits) == (mode == "group")
    if mode == "group":
        group = splits.set_index(splits["path"].map(lambda path: Path(path).name))["group"]
        original = splits["path"].str.endswith("good/00.png")
        assert group["copy.jpg"] == splits.loc[original, "group"].item()
        assert splits["group"].nunique() > 60
    assert pairs.empty == (mode == "off") and set(pairs["kind"]) <= {"similar"}
    assert ("give them one group" in caplog.text) == (mode == "group")


def test_images_with_groups_of_their_own_may_look_alike_in_two_splits(
    camera: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    _, pairs = split(camera.assign(group=camera["sha256"]))
    assert len(pairs) and "give them one group" not in caplog.text


def test_of_other_classes_nothing_is_linked_and_off_in_yaml_is_no_boolean(
    camera: pd.DataFrame,
) -> None:
    assert ScreeningOptions(near_duplicates=False).near_duplicates == "off"
    splits, _ = split(camera)
    assert (splits.groupby("group")["label"].nunique() == 1).all()


def test_a_warm_start_moves_what_was_seen_out_of_the_test_split_or_stops(
    camera: pd.DataFrame, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, _ = split(camera, near_duplicates="off")
    hashes = camera.set_index("path")["sha256"]
    seen = frozenset(hashes[first.loc[first["split"] != "test", "path"]])
    model = ModelOptions(backbone="timm/resnet18", weights="none",
                         backbone_kwargs={"channels": [4, 4, 8, 8]})  # fmt: skip
    network, _ = build_network(model, 2, 32, seed=0)
    ancestor = Classifier(network.eval(), ("defective", "good"), IMAGENET, model, seen=seen)
    save_classifier(ancestor, tmp_path / "classifier")
    warm = ModelOptions(weights=str(tmp_path / "classifier" / "model.safetensors"))
    again, _ = split(camera, model=warm, near_duplicates="off")
    assert again["split"].equals(first["split"]) and "has seen" not in caplog.text
    other, _ = split(camera, seed=1, model=warm, near_duplicates="off")
    assert not seen & set(hashes[other.loc[other["split"] == "test", "path"]])
    assert "has seen" in caplog.text and "become training images" in caplog.text
    with pytest.raises(DataError, match=r"screening\.seen_test_images=move"):
        split(camera, seed=1, model=warm, near_duplicates="off", seen_test_images="error")
    (tmp_path / "classifier" / "seen_images.txt").unlink()
    split(camera, seed=1, model=warm, near_duplicates="off")
    assert "no seen_images.txt beside it" in caplog.text
