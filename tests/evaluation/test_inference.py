"""No damage to a file stops an inference, and each image is predicted from its views."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from evaluation.test_predictions import untrained
from thawline.data.transforms import normalize
from thawline.evaluation.inference import NUM_VIEWS, decode_views, predict_batches
from thawline.networks.building import IMAGENET
from thawline.networks.classifier import Calibration, Classifier
from thawline.networks.heads import find_linear
from thawline.options import Tta

PREPROCESSING = IMAGENET.model_copy(update={"size": 32, "resize": 36})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_to_a_file_raises(tmp_path: Path, photos: Path, data: st.DataObject) -> None:
    image = Image.open(photos / "flower" / "00.jpg").resize((40, 30))
    file = io.BytesIO()
    image.save(file, data.draw(st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])))
    content = bytearray(file.getvalue())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    tta = data.draw(st.sampled_from([*NUM_VIEWS]))
    views, problem = decode_views(str(path), PREPROCESSING, tta)
    assert views.shape == (NUM_VIEWS[tta], 3, 32, 32) and isinstance(problem, str)
    assert not problem or views.max() == 0


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return untrained(("a", "b", "c"))


def probabilities(classifier: Classifier, image: bytes, tta: Tta) -> torch.Tensor:
    (batch,) = predict_batches(classifier, [image], 4, tta=tta)
    return batch.probabilities[0]


PIXELS = np.random.default_rng(0).integers(0, 256, (36, 72, 3), dtype=np.uint8)


def test_test_time_augmentation_is_the_mean_over_torchvisions_views(classifier: Classifier) -> None:
    image = torch.from_numpy(PIXELS).permute(2, 0, 1)
    center = v2.CenterCrop(32)(image)
    views = {
        "none": [center],
        "flip": [center, v2.RandomHorizontalFlip(1)(center)],
        "five_crop": v2.FiveCrop(32)(image),
    }
    for tta, chosen in views.items():
        with torch.inference_mode():
            logits = classifier.network(normalize(torch.stack([*chosen]), PREPROCESSING))
        expected = logits.softmax(dim=1).mean(dim=0)
        torch.testing.assert_close(probabilities(classifier, encoded(PIXELS), tta), expected)


def test_threads_that_share_a_classifier_get_the_answers_of_one(classifier: Classifier) -> None:
    """Each has its own image, and its own distance from the training images."""
    own = untrained(classifier.class_names, seed=1)
    width = find_linear(own.network).in_features
    reference = torch.nn.functional.normalize(torch.randn(9, width)).half()
    shared = replace(own, calibration=Calibration(reference=reference, max_distance=1.0))
    rng = np.random.default_rng(0)
    images = [encoded(rng.integers(0, 256, (36, 36, 3), dtype=np.uint8)) for _ in range(400)]

    def ask(image: bytes) -> tuple[list[float], float]:
        (batch,) = predict_batches(shared, [image], 1)
        return batch.probabilities[0].tolist(), batch.distances.item()

    with ThreadPoolExecutor(20) as pool:
        together = [*pool.map(ask, images)]
    assert together == [ask(image) for image in images]


def test_views_that_are_equal_give_what_one_of_them_gives(classifier: Classifier) -> None:
    mirrored = encoded(np.concatenate([PIXELS, PIXELS[:, ::-1]], axis=1))
    square = replace(classifier, preprocessing=PREPROCESSING.model_copy(update={"resize": 32}))
    for model, image, tta in (
        (classifier, mirrored, "flip"),
        (square, encoded(PIXELS[:, :36]), "five_crop"),
    ):
        expected = probabilities(model, image, "none")
        torch.testing.assert_close(probabilities(model, image, tta), expected)
    asymmetric = encoded(PIXELS)
    expected = probabilities(classifier, asymmetric, "none")
    assert not torch.equal(probabilities(classifier, asymmetric, "flip"), expected)
