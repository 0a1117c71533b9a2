"""An ONNX file computes what the network does, or is not written."""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from evaluation.test_predictions import untrained
from thawline.datasets import OnnxDataset
from thawline.errors import ExportError
from thawline.networks.building import IMAGENET
from thawline.networks.classifier import Classifier
from thawline.serving.onnx import export_onnx


def make(backbone: str, **options: object) -> Classifier:
    return untrained(("a", "b", "c"), 64, 72, backbone=backbone, **options)


@pytest.mark.parametrize(
    "classifier",
    [
        pytest.param(make("timm/tf_efficientnet_lite0"), marks=pytest.mark.slow),
        make("helpers.networks:ResidualNet"),
        make("helpers.networks:SmallNet", log_probabilities=True),
    ],
    ids=lambda classifier: classifier.model.backbone,
)
def test_outputs_agree_for_any_batch(classifier: Classifier, tmp_path: Path) -> None:
    dataset = OnnxDataset(str(tmp_path / "onnx"))
    dataset.save(export_onnx(classifier))
    assert dataset.load()[1]["check"]["largest_difference"] < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    for count in (1, 3, 16):
        images = torch.randn(count, 3, 64, 64)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        with torch.inference_mode():
            assert np.abs(found - classifier.network(images).numpy()).max() < 1e-4


def test_the_description_says_all_that_one_needs(tmp_path: Path) -> None:
    dataset = OnnxDataset(str(tmp_path / "onnx"))
    dataset.save(export_onnx(make("helpers.networks:SmallNet")))
    description = json.loads((tmp_path / "onnx" / "model.json").read_text())
    assert description["class_names"] == ["a", "b", "c"]
    assert description["input"]["shape"] == ["batch", 3, 64, 64]
    steps = description["preprocessing"]
    assert steps["resize_shorter_side"] == 72 and steps["center_crop"] == 64
    assert steps["mean"] == list(IMAGENET.mean) and steps["interpolation"] == "bilinear"
    assert steps["scale"] == 1 / 255


def test_a_network_with_random_outputs_is_refused() -> None:
    with pytest.raises(ExportError, match=r"has other outputs than the network.*random numbers"):
        export_onnx(make("helpers.networks:NoisyNet"))


def test_a_network_that_cannot_be_exported_is_refused() -> None:
    with pytest.raises(ExportError, match=r"BranchingNet cannot be exported to ONNX"):
        export_onnx(make("helpers.networks:BranchingNet"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ExportError, match=r"onnxscript.*pip install 'thawline\[onnx\]'"):
        export_onnx(make("helpers.networks:SmallNet"))
