"""The figures on the test split equal those of independent computations."""

import math

import numpy as np
import pandas as pd
import pytest

from evaluation.test_calibration import NAMES, predictions_of
from thawline.evaluation.metrics import compute_metrics
from thawline.evaluation.significance import accuracy_interval
from thawline.options import EvaluationOptions
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.figures.training import learning_curves


def predictions_of_80_images(seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    logits = np.log(rng.dirichlet([0.5] * 3, size=80))
    return predictions_of(logits, rng.integers(0, 3, size=80))


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_their_definitions(seed: int) -> None:
    predictions = predictions_of_80_images(seed)
    truth, guess = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
    table = predictions[[f"probability_{n}" for n in NAMES]].to_numpy()
    own = table[np.arange(80), [NAMES.index(label) for label in truth]]
    metrics, per_class, confusion = compute_metrics(predictions, EvaluationOptions(top_k=2))
    assert metrics["test_accuracy"] == np.mean(truth == guess)
    assert metrics["test_loss"] == pytest.approx(np.mean([-math.log(p) for p in own]))
    assert metrics["test_top2_accuracy"] == np.mean((table > own[:, None]).sum(axis=1) < 2)
    hits = np.array([sum((truth == name) & (guess == name)) for name in NAMES])
    images = np.array([sum(truth == name) for name in NAMES])
    calls = np.array([sum(guess == name) for name in NAMES])
    np.testing.assert_allclose(per_class["precision"], hits / calls)
    np.testing.assert_allclose(per_class["recall"], hits / images)
    np.testing.assert_allclose(per_class["f1"], 2 * hits / (calls + images))
    assert metrics["test_macro_f1"] == pytest.approx(np.mean(2 * hits / (calls + images)))
    assert per_class["images"].tolist() == images.tolist() == confusion.sum(axis=1).tolist()
    assert confusion.to_numpy().diagonal().tolist() == hits.tolist()
    assert confusion.sum(axis=0).tolist() == calls.tolist()


def test_a_class_without_images_and_predictions_does_not_count_in_macro_f1() -> None:
    predictions = predictions_of_80_images(seed=0)
    rows = predictions[(predictions["label"] != "wasp") & (predictions["prediction"] != "wasp")]
    metrics, per_class, _ = compute_metrics(rows, EvaluationOptions())
    assert metrics["test_macro_f1"] == pytest.approx(per_class["f1"][:2].mean())
    assert per_class.loc[2, ["images", "precision", "recall", "f1"]].tolist() == [0] * 4


def test_the_interval_of_the_accuracy_is_that_of_the_images_or_of_their_groups() -> None:
    predictions = predictions_of_80_images(seed=0)
    right = predictions["label"] == predictions["prediction"]
    groups = np.arange(80) // 8
    for table, own in ((predictions, None), (predictions.assign(group=groups), groups)):
        metrics, *_ = compute_metrics(table, EvaluationOptions())
        found = metrics["test_accuracy_low"], metrics["test_accuracy_high"]
        assert found == accuracy_interval(right.to_numpy(), own)


def test_twelve_of_twelve_leave_room_for_mistakes() -> None:
    table = pd.DataFrame({"path": "x", "label": "ant", "prediction": ["ant"] * 12})
    table["probability_ant"], table["probability_bee"] = 1.0, 0.0
    metrics, *_ = compute_metrics(table, EvaluationOptions())
    assert metrics["test_accuracy"] == metrics["test_accuracy_high"] == 1
    assert metrics["test_accuracy_low"] == pytest.approx(0.735, abs=1e-3)


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
    lines = [np.asarray(line.y).tolist() for line in figure.data]
    assert lines == [[0.3, 0.2, 0.1]] * 2 + [[0.7, 0.8, 0.9]] * 2
    bands = [shape for shape in figure.layout.shapes if shape.type == "rect"]
    assert {(band.x0, band.x1) for band in bands} == {(0.5, 2.5), (2.5, 3.5)}
    texts = {note.text for note in figure.layout.annotations}
    assert {"1", "2"} <= texts
    assert any("2: 5,000 trainable parameters,<br>above images" in text for text in texts)
