"""A split and a folder get the same predictions; in a folder, a bad file is a row as well."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from thawline.data.sources import find_files
from thawline.data.transforms import evaluation_view, normalize
from thawline.datasets import ImageTableDataset
from thawline.errors import DataError, ParameterError
from thawline.evaluation.predictions import as_arrays, predict_files, predict_split
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import Classifier
from thawline.options import ModelOptions, PredictOptions, RegistryOptions, TrainingOptions
from thawline.pipelines.predict.nodes import predict_folder
from thawline.serving.requests import classify

TRAINING = TrainingOptions(device="cpu", num_workers=0)
CLASSES = ("flower", "temple")


def untrained(
    names: tuple[str, ...], size: int = 32, resize: int = 36, seed: int = 0, **model: Any
) -> Classifier:
    """Return a classifier with random weights, of a SmallNet unless another model is named."""
    own = ModelOptions(**{"backbone": "helpers.networks:SmallNet", "weights": "none", **model})
    network, _ = build_network(own, len(names), size, seed)
    preprocessing = IMAGENET.model_copy(update={"size": size, "resize": resize})
    return Classifier(network.eval(), names, preprocessing, own)


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return untrained(("a", "b", "c"))


@pytest.fixture
def mixed(tmp_path: Path, photos: Path) -> tuple[Path, dict[str, str]]:
    """Return a folder of good and bad files, and by name what is wrong with the bad ones."""
    (tmp_path / "deep" / "er").mkdir(parents=True)
    image = Image.open(photos / "flower" / "00.jpg")
    image.save(tmp_path / "good.jpg")
    image.save(tmp_path / "deep" / "er" / "PHOTO.WEBP")
    image.save(tmp_path / "no_suffix", "PNG")
    whole = (tmp_path / "good.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "deep" / "notes.txt").write_text("ants")
    (tmp_path / "page.png").write_text("<html>404</html>")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    Image.new("1", (1, 200_000)).save(tmp_path / "line.png")
    for hidden in (".DS_Store", ".cache/a.jpg"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(whole)
    os.mkfifo(tmp_path / "pipe.jpg")
    return tmp_path, {
        "cut.jpg": "runcated",
        "empty.jpg": "an empty file",
        "deep/notes.txt": "not an image",
        "page.png": "not an image",
        "gone.jpg": "FileNotFoundError: No such file or directory",
        "line.png": "DecompressionBombError: 1 × 200000 px would be resized to 36 × 7200000",
    }


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_every_file_becomes_a_row_and_bad_ones_say_why(
    classifier: Classifier, mixed: tuple[Path, dict[str, str]], batch_size: int
) -> None:
    folder, problems = mixed
    files = find_files(folder.name, folder.parent)
    assert files == sorted(files)
    table = predict_files(classifier, files, batch_size, 2, TRAINING)
    table.index = pd.Index([Path(path).relative_to(folder).as_posix() for path in table["path"]])
    good = ["deep/er/PHOTO.WEBP", "good.jpg", "no_suffix"]
    assert sorted(table.index) == sorted([*problems, *good])
    for name, problem in problems.items():
        assert problem in table.loc[name, "problem"]
    assert str(folder) not in " ".join(table["problem"].dropna())
    answers = ["label", "probability", "label_2", "probability_2"]
    assert list(table.columns) == ["path", *answers, "problem"]
    assert table.loc[list(problems), answers].isna().all(axis=None)
    assert table.loc[good, "problem"].isna().all()
    alone = classify(classifier, table.loc[good, "path"].tolist(), top_k=2)
    pd.testing.assert_frame_equal(table.loc[good, answers].reset_index(drop=True), alone)


def test_labels_are_those_of_the_evaluation(splits: pd.DataFrame) -> None:
    two = untrained(CLASSES, seed=1)
    views = torch.stack([evaluation_view(path, two.preprocessing) for path in splits["path"]])
    with torch.inference_mode():  # or else one class would be the answer to all
        two.network.linear.bias -= two.network(normalize(views, two.preprocessing)).mean(dim=0)
    wanted = predict_split(two, splits, "train", 7, TRAINING)
    assert wanted["prediction"].nunique() == 2
    found = predict_files(two, wanted["path"].tolist(), 5, 9, TRAINING)
    assert found["label"].tolist() == wanted["prediction"].tolist()
    shares = wanted[["probability_flower", "probability_temple"]]
    assert found["probability"].tolist() == pytest.approx(shares.max(axis=1).tolist(), abs=1e-6)
    assert (found["probability"] + found["probability_2"]).tolist() == pytest.approx([1] * 28)


def test_the_table_survives_parquet_and_csv(
    classifier: Classifier, photos: Path, tmp_path: Path
) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.jpg"  # no UTF-8
    Path(os.fsdecode(odd)).write_bytes((photos / "flower" / "00.jpg").read_bytes())
    (tmp_path / "bad.jpg").touch()
    table = predict_files(classifier, find_files(str(tmp_path), tmp_path), 16, 1, TRAINING)
    assert table["path"].tolist() == [f"{tmp_path}/bad.jpg", f"{tmp_path}/caf\\xe9.jpg"]
    table.to_parquet(tmp_path / "table.parquet")
    table.to_csv(tmp_path / "table.csv", index=False)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "table.csv"), table)


def test_a_folder_of_nothing_but_bad_files_gives_their_problems(
    classifier: Classifier, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").touch()
    table = predict_files(classifier, find_files(".", tmp_path), 16, 1, TRAINING)
    assert table["problem"].tolist() == ["an empty file"] and table["label"].isna().all()


def test_a_file_is_itself_and_no_folder_is_said_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    assert find_files("file", tmp_path) == [str(tmp_path / "file")]
    for root, said in (("gone", "does not exist"), ("empty", "no file")):
        with pytest.raises(DataError, match=rf"predict\.root: .*{said}"):
            find_files(root, tmp_path)
    with pytest.raises(ParameterError, match=r"--params=predict\.root=FOLDER"):
        options = (PredictOptions(), RegistryOptions(), ModelOptions(), TRAINING)
        predict_folder(Path(), lambda *_: None, *options)  # type: ignore


def test_predictions_of_a_split_equal_those_of_the_images(splits: pd.DataFrame) -> None:
    classifier = untrained(CLASSES, 64, 73, seed=1)
    predictions = predict_split(classifier, splits, "test", 4, TRAINING)
    test = splits[splits["split"] == "test"]
    assert predictions["path"].tolist() == test["path"].tolist()
    assert predictions["label"].tolist() == test["label"].tolist()
    single = classify(classifier, test["path"].tolist())
    assert predictions["prediction"].tolist() == single["label"].tolist()
    probabilities = predictions[["probability_flower", "probability_temple"]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities.max(axis=1), single["probability"], atol=1e-5)
    other = replace(classifier, class_names=("dog", "temple"))
    with pytest.raises(DataError, match="knows the classes dog, temple, the splits have flower"):
        predict_split(other, splits, "test", 4, TRAINING)


def test_predictions_carry_the_groups_of_the_splits_through_the_catalog(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    classifier = untrained(CLASSES, 64, 73, seed=1)
    without = predict_split(classifier, splits, "test", 4, TRAINING)
    groups = [f"{row % 3:03d}" if row % 3 else "NA" for row in range(len(splits))]
    predictions = predict_split(classifier, splits.assign(group=groups), "test", 4, TRAINING)
    assert list(predictions.columns[:4]) == ["path", "label", "prediction", "group"]
    pd.testing.assert_frame_equal(predictions.drop(columns="group"), without)
    test = np.flatnonzero(splits["split"] == "test")
    assert predictions["group"].tolist() == [groups[row] for row in test]
    for found, expected in zip(as_arrays(predictions), as_arrays(without), strict=True):
        np.testing.assert_array_equal(found, expected)
    dataset = ImageTableDataset(filepath=str(tmp_path / "predictions.csv"), path=str(tmp_path))
    dataset.save(predictions)
    pd.testing.assert_series_equal(dataset.load()["group"], predictions["group"])
    dataset.save(without)
    assert "group" not in dataset.load()
