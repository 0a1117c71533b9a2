"""Run a trained network over images. Nothing else does, so every way to ask gives one answer.

A served model uses it too: import only what `datasets.served_model_dataset` lists as requirements.
"""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain, compress, pairwise
from typing import Any, NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as normalize_length

from thawline.data.decoding import ImageError, Source
from thawline.data.transforms import Preprocessing, evaluation_views, normalize
from thawline.evaluation.prediction_sets import draw_uniform, prediction_sets
from thawline.networks.classifier import Classifier
from thawline.networks.heads import find_linear
from thawline.options import Tta
from thawline.thaw.device import keep_freed_memory

NEIGHBORS = 5
UNLIKE = "unlike the training images"
CPU = torch.device("cpu")
# Held while a network is moved, hooked or copied: a server's threads share it.
NETWORK_LOCK = threading.Lock()
NUM_VIEWS = {"none": 1, "flip": 2, "five_crop": 5}  # of an image, with test-time augmentation


class PredictedBatch(NamedTuple):
    """Consecutive images and the predictions for them."""

    views: Tensor  # (N, 3, size, size) uint8, the center crops; black if unreadable
    probabilities: Tensor  # (N, C) float32 on the CPU
    problems: tuple[str, ...]  # why each image cannot be read; empty if it can
    # (N,) float32 from the training images, 0 (equal) to 2; not a number if these are not known
    distances: Tensor
    nearest: Tensor  # (N, 5) positions in the reference, the nearest first; (N, 0) without one


def predict_batches(
    classifier: Classifier,
    images: Sequence[Source],
    batch_size: int,
    device: torch.device = CPU,
    tta: Tta = "none",
) -> Iterator[PredictedBatch]:
    """Predict images in fp32 with the classifier's own preprocessing, batch by batch, in order.

    Logits are divided by the temperature of its calibration.

    With test-time augmentation, an image's probabilities are the mean of those of its views, as in
    Krizhevsky et al. 2012; mean logits would give more weight to views with extreme ones.
    The network is moved to `device`. Threads decode the next batch during the prediction of this
    one: a process would load another 700 MB of PyTorch.
    """
    if device == CPU:
        keep_freed_memory()
    with NETWORK_LOCK:
        network = classifier.network.eval().to(device).to(memory_format=torch.channels_last)
    temperature, reference = classifier.calibration.temperature, classifier.calibration.reference
    decode = partial(decode_views, preprocessing=classifier.preprocessing, tta=tta)
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        starts = range(0, len(images), batch_size)
        decoding = (pool.map(decode, images[start : start + batch_size]) for start in starts)
        for batch, _ in pairwise(chain(decoding, [()])):  # submits the next before it yields one
            decoded, problems = zip(*batch, strict=True)
            views = torch.stack(decoded, dim=1)
            # One view after the other, in the memory of one.
            with NETWORK_LOCK, torch.inference_mode(), head_inputs(network, reference) as received:
                logits = [
                    network(normalize(view.to(device), classifier.preprocessing)) for view in views
                ]
                # Softmax leaves log-probabilities as they are, so it serves for both.
                scaled = torch.stack(logits).float() / temperature
                probabilities = scaled.softmax(dim=2).mean(dim=0).cpu()
            unknown = torch.full((len(problems),), torch.nan)
            distances, nearest = unknown, torch.empty(len(problems), 0, dtype=torch.int64)
            if reference is not None:
                distances, nearest = find_nearest(received[0].float().cpu(), reference)
            yield PredictedBatch(views[0], probabilities, problems, distances, nearest)


@contextmanager
def head_inputs(network: nn.Module, reference: Tensor | None) -> Iterator[list[Tensor]]:
    """Collect what the last linear layer receives, (N, F), if there is a reference to compare."""
    received: list[Tensor] = []
    if reference is None:
        yield received
        return
    linear = find_linear(network)
    with linear.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0])):
        yield received


def find_nearest(features: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean cosine distance (N,) to the five nearest of the reference (M, D), and these.

    Of features (N, D or more), the last D count: those of the last layer. Deep nearest neighbors
    tell images of another kind apart (Sun et al. 2022, arXiv:2204.06507). The five are positions
    in the reference, (N, 5) int64, the nearest first; fewer if it has fewer.
    """
    own = normalize_length(features[:, -reference.shape[1] :])
    similarities = own @ reference.float().T
    nearest, positions = similarities.topk(min(NEIGHBORS, len(reference)), dim=1)
    return 1 - nearest.mean(dim=1), positions


def decode_views(
    source: Source, preprocessing: Preprocessing, tta: Tta = "none"
) -> tuple[Tensor, str]:
    """Return `evaluation_views` and an empty text, or as many black views and the problem."""
    try:
        return evaluation_views(source, preprocessing, tta), ""
    except ImageError as error:
        size, count = preprocessing.size, NUM_VIEWS[tta]
        return torch.zeros(count, 3, size, size, dtype=torch.uint8), error.problem


def answer(
    batch: PredictedBatch, classifier: Classifier, top_k: int, refuse: bool = True
) -> pd.DataFrame:
    """Return `top_k_predictions` of a batch, and how sure they are, as far as it is known.

    Returns:
        then set: the classes that hold the true one with the chosen probability, separated by
        commas; distance from the training images; reason why there is no label, or empty. With
        `refuse`, an image that is unlike them has none.
    """
    own, names = classifier.calibration, classifier.class_names
    table = top_k_predictions(batch.probabilities, names, top_k)
    if own.max_scores:
        uniform = draw_uniform(batch.views.numpy())
        inside = prediction_sets(batch.probabilities.numpy(), uniform, np.array(own.max_scores))
        table["set"] = [", ".join(compress(names, row)) for row in inside]
    if own.reference is not None:
        table["distance"] = batch.distances.numpy()
        if refuse:
            is_unlike = table["distance"] > own.max_distance
            table["label"] = table["label"].mask(is_unlike, None)
            reasons = [UNLIKE if unlike else None for unlike in is_unlike]
            table["reason"] = pd.Series(reasons, dtype="object")
    return table


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
