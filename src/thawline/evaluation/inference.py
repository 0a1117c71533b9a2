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
from thawline.data.transforms import Preprocessing, evaluation_view, normalize
from thawline.networks.classifier import Classifier

CPU = torch.device("cpu")


class PredictedBatch(NamedTuple):
    """Consecutive images and the predictions for them."""

    views: Tensor  # (N, 3, size, size) uint8, as the network sees them; black if unreadable
    probabilities: Tensor  # (N, C) float32 on the CPU
    problems: tuple[str, ...]  # why each image cannot be read; empty if it can


def predict_batches(
    classifier: Classifier, images: Sequence[Source], batch_size: int, device: torch.device = CPU
) -> Iterator[PredictedBatch]:
    """Predict images in fp32 with the classifier's own preprocessing, batch by batch, in order.

    The network is moved to `device`. Threads decode the next batch during the prediction of this
    one: a process would load another 700 MB of PyTorch.
    """
    network = classifier.network.eval().to(device).to(memory_format=torch.channels_last)
    decode = partial(decode_view, preprocessing=classifier.preprocessing)
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        starts = range(0, len(images), batch_size)
        decoding = (pool.map(decode, images[start : start + batch_size]) for start in starts)
        for batch, _ in pairwise(chain(decoding, [()])):  # submits the next before it yields one
            decoded, problems = zip(*batch, strict=True)
            views = torch.stack(decoded)
            with torch.inference_mode():
                logits = network(normalize(views.to(device), classifier.preprocessing))
                # Softmax leaves log-probabilities as they are, so it serves for both.
                probabilities = logits.float().softmax(dim=1).cpu()
            yield PredictedBatch(views, probabilities, problems)


def decode_view(source: Source, preprocessing: Preprocessing) -> tuple[Tensor, str]:
    """Return a view (3, size, size) uint8 and an empty text, or a black view and the problem."""
    try:
        return evaluation_view(source, preprocessing), ""
    except ImageError as error:
        black = torch.zeros(3, preprocessing.size, preprocessing.size, dtype=torch.uint8)
        return black, error.problem


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
