"""Run a trained network over images. Nothing else does, so every way to ask gives one answer.

A served model uses it too: import only what `datasets.served_model_dataset` lists as requirements.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import joblib
import pandas as pd
import torch
from torch import Tensor

from thawline.data.decoding import ImageError, Source
from thawline.data.transforms import Preprocessing, evaluation_views, normalize
from thawline.networks.classifier import Classifier
from thawline.options import Tta

CPU = torch.device("cpu")
NUM_VIEWS = {"none": 1, "flip": 2, "five_crop": 5}  # of an image, with test-time augmentation


class PredictedBatch(NamedTuple):
    """Consecutive images and the predictions for them."""

    views: Tensor  # (N, 3, size, size) uint8, the center crops; black if unreadable
    probabilities: Tensor  # (N, C) float32 on the CPU
    problems: tuple[str, ...]  # why each image cannot be read; empty if it can


def predict_batches(
    classifier: Classifier,
    images: Sequence[Source],
    batch_size: int,
    device: torch.device = CPU,
    tta: Tta = "none",
) -> Iterator[PredictedBatch]:
    """Predict images in fp32 with the classifier's own preprocessing, batch by batch, in order.

    With test-time augmentation, an image's probabilities are the mean of those of its views, as in
    Krizhevsky et al. 2012; mean logits would give more weight to views with extreme ones.
    The network is moved to `device`. Threads decode the next batch during the prediction of this
    one: a process would load another 700 MB of PyTorch.
    """
    network = classifier.network.eval().to(device).to(memory_format=torch.channels_last)
    decode = partial(decode_views, preprocessing=classifier.preprocessing, tta=tta)
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        starts = range(0, len(images), batch_size)
        decoding = (pool.map(decode, images[start : start + batch_size]) for start in starts)
        for batch, _ in pairwise(chain(decoding, [()])):  # submits the next before it yields one
            decoded, problems = zip(*batch, strict=True)
            views = torch.stack(decoded, dim=1)
            with torch.inference_mode():  # one view after the other, in the memory of one
                logits = [
                    network(normalize(view.to(device), classifier.preprocessing)) for view in views
                ]
                # Softmax leaves log-probabilities as they are, so it serves for both.
                probabilities = torch.stack(logits).float().softmax(dim=2).mean(dim=0).cpu()
            yield PredictedBatch(views[0], probabilities, problems)


def decode_views(
    source: Source, preprocessing: Preprocessing, tta: Tta = "none"
) -> tuple[Tensor, str]:
    """Return `evaluation_views` and an empty text, or as many black views and the problem."""
    try:
        return evaluation_views(source, preprocessing, tta), ""
    except ImageError as error:
        size, count = preprocessing.size, NUM_VIEWS[tta]
        return torch.zeros(count, 3, size, size, dtype=torch.uint8), error.problem


def top_k_predictions(
    probabilities: Tensor, class_names: Sequence[str], top_k: int
) -> pd.DataFrame:
    """Return the most probable classes per row of probabilities (N, C), ties in class order.

    Returns:
        label and probability (0 to 1), then label_2, probability_2 and so on up to `top_k` or C.
    """
    top, idx = probabilities.double().sort(dim=1, descending=True, stable=True)
    names = pd.Series(class_names, dtype="str")
    columns: dict[str, Any] = {}
    for place in range(min(top_k, len(names))):
        suffix = f"_{place + 1}" if place else ""
        columns[f"label{suffix}"] = names.take(idx[:, place].numpy()).array
        columns[f"probability{suffix}"] = top[:, place].numpy()
    return pd.DataFrame(columns)
