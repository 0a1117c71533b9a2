"""The figures on the test split equal those of independent computations."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from thawline.datasets import ImageTableDataset
from thawline.errors import DataError
from thawline.evaluation.metrics import as_arrays, predict_split, score
from thawline.evaluation.significance import accuracy_interval
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import Classifier, classify
from thawline.options import EvaluationOptions, ModelOptions, TrainingOptions
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.figures.training import learning_curves

NAMES = ["ant", "bee", "wasp"]
TRAINING = TrainingOptions(num_workers=0)


def predictions_of(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    table = rng.dirichlet([0.5] * 3, size=count)
    truth = rng.integers(0, 3, size=count)
    return pd.DataFrame(
        {
            "path": [f"{i}.jpg" for i in range(count)],
            "label": [NAMES[i] for i in truth],
            "prediction": [NAMES[i] for i in table.argmax(axis=1)],
            **{f"probability_{name}": table[:, i] for i, name in enumerate(NAMES)},
        }
    )


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_those_of_scikit_learn(seed: int) -> None:
    predictions = predictions_of(80, seed)
    truth, guess = predictions["label"], predictions["prediction"]
    table = predictions[[f"probability_{n}" for n in NAMES]].to_numpy()
    metrics, per_class, confusion = score(predictions, EvaluationOptions(top_k=2))
    assert metrics["test_accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert metrics["test_macro_f1"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    assert metrics["test_loss"] == pytest.approx(sk.log_loss(truth, table, labels=NAMES), rel=1e-5)
    top2 = sk.top_k_accuracy_score(truth, table, k=2, labels=NAMES)
    assert metrics["test_top2_accuracy"] == pytest.approx(top2)
    precision, recall, f1, images = sk.precision_recall_fscore_support(truth, guess, labels=NAMES)
    np.testing.assert_allclose(per_class["precision"], precision, atol=1e-6)
    np.testing.assert_allclose(per_class["recall"], recall, atol=1e-6)
    np.testing.assert_allclose(per_class["f1"], f1, atol=1e-6)
    assert per_class["images"].tolist() == images.tolist()
    assert (confusion.to_numpy() == sk.confusion_matrix(truth, guess, labels=NAMES)).all()


def test_the_interval_of_the_accuracy_is_that_of_the_images_or_of_their_groups() -> None:
    predictions = predictions_of(80, seed=0)
    right = predictions["label"] == predictions["prediction"]
    groups = np.arange(80) // 8
    for table, own in ((predictions, None), (predictions.assign(group=groups), groups)):
        metrics, *_ = score(table, EvaluationOptions())
        found = metrics["test_accuracy_low"], metrics["test_accuracy_high"]
        assert found == accuracy_interval(right.to_numpy(), own)


def test_twelve_of_twelve_leave_room_for_mistakes() -> None:
    table = pd.DataFrame({"path": "x", "label": "ant", "prediction": ["ant"] * 12})
    table["probability_ant"], table["probability_bee"] = 1.0, 0.0
    metrics, *_ = score(table, EvaluationOptions())
    assert metrics["test_accuracy"] == metrics["test_accuracy_high"] == 1
    assert metrics["test_accuracy_low"] == pytest.approx(0.735, abs=1e-3)


def test_predictions_of_a_split_equal_those_of_the_images(splits: pd.DataFrame) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
    network, _ = build_network(model, 2, 64, seed=1)
    preprocessing = IMAGENET.model_copy(update={"size": 64, "resize": 73})
    classifier = Classifier(network, ("flower", "temple"), preprocessing, model)
    predictions = predict_split(classifier, splits, "test", 4, TRAINING)
    test = splits[splits["split"] == "test"]
    assert predictions["path"].tolist() == test["path"].tolist()
    assert predictions["label"].tolist() == test["label"].tolist()
    single = classify(classifier, test["path"].tolist())
    assert predictions["prediction"].tolist() == single["label"].tolist()
    probabilities = predictions[["probability_flower", "probability_temple"]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probabilities.max(axis=1), single["probability"], atol=1e-5)
    other = Classifier(network, ("dog", "temple"), preprocessing, model)
    with pytest.raises(DataError, match="knows the classes dog, temple, the splits have flower"):
        predict_split(other, splits, "test", 4, TRAINING)


def test_predictions_carry_the_groups_of_the_splits_through_the_catalog(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    model = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
    network, _ = build_network(model, 2, 64, seed=1)
    preprocessing = IMAGENET.model_copy(update={"size": 64, "resize": 73})
    classifier = Classifier(network, ("flower", "temple"), preprocessing, model)
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


def test_the_confusion_figure_holds_counts_and_shares() -> None:
    counts = pd.DataFrame([[8, 2], [0, 0]], index=["1", "2"], columns=["1", "2"])
    heatmap = confusion_matrix(counts).data[0]
    assert np.asarray(heatmap.text).tolist() == [[8, 2], [0, 0]]
    np.testing.assert_allclose(np.asarray(heatmap.z), [[0.8, 0.2], [0, 0]])


def test_the_curves_show_both_splits_with_a_band_for_each_phase() -> None:
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "phase": [1, 1, 2],
            "thaw_line": ["flatten", "flatten", "images"],
            "trainable_parameters": [10, 10, 5000],
            **{c: [0.3, 0.2, 0.1] for c in ("train_loss", "val_loss")},
            **{c: [0.7, 0.8, 0.9] for c in ("train_accuracy", "val_accuracy")},
        }
    )
    figure = learning_curves(history, best_epoch=3)
    assert [np.asarray(line.y).tolist() for line in figure.data] == [[0.3, 0.2, 0.1]] * 2 + [
        [0.7, 0.8, 0.9]
    ] * 2
    bands = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert {(band.x0, band.x1) for band in bands} == {(0.5, 2.5), (2.5, 3.5)}
    texts = {note.text for note in figure.layout.annotations}
    assert {"1", "2"} <= texts
    assert any("2: 5,000 parameters trained,<br>above images" in text for text in texts)
