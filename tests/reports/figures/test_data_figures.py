"""The figures of the data show every class, every split, and the views that training takes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from thawline.data.decoding import hash_files
from thawline.data.loading import ImageView
from thawline.data.splitting import SPLITS
from thawline.data.transforms import Preprocessing, Transforms, evaluation_view, training_view
from thawline.options import AugmentationOptions, TransformOptions
from thawline.reports.figures import data, grids, views

PREPROCESSING = Preprocessing(
    size=64, resize=64, interpolation="bilinear", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
)
TRANSFORMS = Transforms(PREPROCESSING, TransformOptions(), seed=3)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, list]:
    """Return the images and captions that the grid drawn next is made of."""
    kept: dict[str, list] = {}

    def keep(title: str, images: list, captions: list, columns: int = 5, empty: str = "") -> object:
        kept.update(images=images, captions=captions)
        return grids.image_grid(title, images, captions, columns, empty)

    for module in (data, views):
        monkeypatch.setattr(module, "image_grid", keep)
    return kept


def test_the_bars_add_up_to_the_images_of_each_class_and_split(splits: pd.DataFrame) -> None:
    figure = data.class_balance(splits)
    assert [bar.name for bar in figure.data] == list(SPLITS)
    for bar in figure.data:
        rows = splits[splits["split"] == bar.name]
        assert dict(zip(bar.y, bar.x, strict=True)) == rows["label"].value_counts().to_dict()


def test_a_hundred_classes_have_a_line_each() -> None:
    table = pd.DataFrame({"label": [f"{idx:03d}" for idx in range(100)] * 3})
    figure = data.class_balance(table.assign(split=np.repeat(SPLITS, 100)))
    assert figure.layout.height >= 100 * 12
    assert figure.layout.yaxis.dtick == 1


def test_equal_sizes_are_one_dot_and_said_in_the_title(splits: pd.DataFrame) -> None:
    figure = data.image_sizes(splits)
    assert "all are 120 × 100 px" in figure.layout.title.text
    for dots in figure.data:
        assert (dots.x.tolist(), dots.y.tolist()) == ([120], [100])
        assert dots.marker.size.sum() == (splits["split"] == dots.name).sum()


def test_samples_are_of_every_class_and_split(splits: pd.DataFrame, shown: dict[str, list]) -> None:
    data.sample_images(splits, seed=0)
    captions = set(shown["captions"])
    assert captions == {f"{label}\n{split}" for label in ("flower", "temple") for split in SPLITS}


def test_the_views_are_those_that_training_takes(
    splits: pd.DataFrame, shown: dict[str, list]
) -> None:
    views.training_views(splits, TRANSFORMS, AugmentationOptions(views_per_image=2), seed=0)
    assert len(shown["images"]) == 3 * views.VIEWED_IMAGES
    pixels = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in shown["images"]]
    paths = splits.loc[splits["split"] == "train", "path"].tolist()
    evaluation = [evaluation_view(path, PREPROCESSING) for path in paths]
    (row,) = [idx for idx, view in enumerate(evaluation) if torch.equal(view, pixels[0])]
    (sha256,) = hash_files([paths[row]])
    for number in (0, 1):
        seed = ImageView(paths[row], sha256, number).seed(TRANSFORMS)
        assert torch.equal(training_view(paths[row], TRANSFORMS, seed), pixels[1 + number])


def test_mixing_shows_in_the_views(splits: pd.DataFrame, shown: dict[str, list]) -> None:
    pictures = []
    for mixup in (0.0, 1.0):
        options = AugmentationOptions(views_per_image=1, mixup=mixup)
        views.training_views(splits, TRANSFORMS, options, seed=0)
        pictures.append([np.array(image) for image in shown["images"]])
    plain, mixed = pictures
    assert (plain[0] == mixed[0]).all()  # the evaluation view
    assert (plain[1] != mixed[1]).any()


def test_tables_without_a_row_become_a_picture_that_says_so() -> None:
    table = pd.DataFrame(columns=["path", "split", "label"])
    assert np.array(data.problem_grid("Outliers", table)).std() > 0


def test_problems_are_shown_with_what_is_wrong(
    splits: pd.DataFrame, shown: dict[str, list]
) -> None:
    path, other = splits["path"].iloc[:2]
    row = {"path": path, "split": "train", "label": "ant"}
    data.problem_grid("Label errors", pd.DataFrame([row | {"suggested": "bee"}]))
    assert shown["captions"] == [f"{Path(path).name}\nant, train\nsuggested: bee"]
    pair = row | {"kind": "near", "other_path": other, "other_split": "test", "other_label": "bee"}
    data.problem_grid("Near-duplicates", pd.DataFrame([pair]))
    names = [Path(each).name for each in (path, other)]
    assert shown["captions"] == [f"{names[0]}\nant, train\nnear", f"{names[1]}\nbee, test"]
