"""A request is answered from bytes or paths alike, and refused if it is too large."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from evaluation.test_predictions import untrained
from thawline.data.transforms import evaluation_view, normalize
from thawline.errors import DataError
from thawline.serving.requests import RequestLimits, check_request, classify


def test_paths_and_bytes_are_classified_alike(splits: pd.DataFrame) -> None:
    classifier = untrained(("flower", "temple"), 64, 73, seed=3)
    paths = splits["path"].head(5).tolist()
    by_path = classify(classifier, paths)
    by_bytes = classify(classifier, [Path(p).read_bytes() for p in paths])
    pd.testing.assert_frame_equal(by_path, by_bytes, atol=1e-6)
    views = torch.stack([evaluation_view(path, classifier.preprocessing) for path in paths])
    logits = classifier.network(normalize(views, classifier.preprocessing))
    top, idx = logits.softmax(dim=1).max(dim=1)
    assert by_path["label"].tolist() == [classifier.class_names[i] for i in idx]
    assert by_path["probability"].tolist() == pytest.approx(top.tolist(), abs=1e-6)


def test_a_request_is_bounded_before_an_image_is_decoded() -> None:
    header = b"P5 4000 3000 255\n"  # of an image without a single pixel
    with pytest.raises(DataError, match="Image 2 has 4000 x 3000 px, but max_megapixels is 10"):
        check_request([b"P5 1 1 255\n0", header], RequestLimits(max_megapixels=10))
    with pytest.raises(DataError, match=r"has 3 images, but max_images is 2"):
        check_request([header] * 3, RequestLimits(max_images=2))
    with pytest.raises(DataError, match=r"has 2.0 MB, but max_mb is 1.5"):
        check_request([bytes(10**6)] * 2, RequestLimits(max_mb=1.5))
    with pytest.raises(DataError, match="Image 1 cannot be read: not an image"):
        check_request([b"no image"], RequestLimits())
    check_request(["no bytes"] * 1000, RequestLimits(max_images=1))


def test_a_server_needs_none_of_the_packages_of_the_pipelines() -> None:
    absent = ("accelerate", "captum", "cleanlab", "kedro", "optuna", "plotly", "sklearn")
    blocked = "".join(f"sys.modules[{name!r}] = None; " for name in absent)
    code = f"import sys; {blocked}import thawline.serving.mlflow_model"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
