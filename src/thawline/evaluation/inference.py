"""A classifier over files that nobody has looked at: what cannot be read becomes a row as well."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain, pairwise

import joblib
import pandas as pd
import torch
from rich.progress import track
from torch import Tensor

from thawline.data.sources import describe_problem
from thawline.data.transforms import Preprocessing, evaluation_view
from thawline.evaluation.metrics import make_infer
from thawline.networks.classifier import Classifier, rank
from thawline.options import TrainingOptions


def predict_files(
    classifier: Classifier,
    paths: Sequence[str],
    batch_size: int,
    top_k: int,
    training: TrainingOptions,
) -> pd.DataFrame:
    """Return a table with a row for each file, in their order.

    Computed in fp32 with the classifier's own preprocessing, as `evaluation.predict_split` does.
    Only a few batches of images are in memory at a time.

    Args:
        classifier: its network is moved to the device of `training`.
        paths: files, images or not.
        batch_size: images a step.
        top_k: classes a row, at most those of the classifier.
        training: what device it computes on.

    Returns:
        path; label and probability (0 to 1); label_2, probability_2 and so on up to `top_k`;
        problem: why the file cannot be read, in which case the others are empty, or else empty.
    """
    infer = make_infer(classifier, training)
    decoded = _decode(paths, classifier.preprocessing, batch_size)
    batches = -(-len(paths) // batch_size)
    tables: list[pd.DataFrame] = []
    for images, problems in track(decoded, "Predicting", batches, transient=True):
        table = rank(infer(images), classifier.class_names, top_k)
        problem = pd.Series(problems, dtype="str").replace("", None)
        tables.append(table.where(problem.isna()).assign(problem=problem))
    answers = pd.concat(tables, ignore_index=True)
    answers.insert(0, "path", [_printable(path) for path in paths])
    return answers


def decode(path: str, preprocessing: Preprocessing) -> tuple[Tensor, str]:
    """Return a view (3, size, size) uint8 and an empty text, or a black view and the problem."""
    try:
        return evaluation_view(path, preprocessing), ""
    except Exception as error:  # a damaged file can make a decoder raise anything
        black = torch.zeros(3, preprocessing.size, preprocessing.size, dtype=torch.uint8)
        return black, describe_problem(error, path)


def _decode(
    paths: Sequence[str], preprocessing: Preprocessing, batch_size: int
) -> Iterator[tuple[Tensor, tuple[str, ...]]]:
    """Yield views (N, 3, size, size) and problems, batch by batch, the next one in the making.

    Threads, not processes: each process would bring some 700 MB of PyTorch along.
    """
    one = partial(decode, preprocessing=preprocessing)
    with ThreadPoolExecutor(max_workers=joblib.cpu_count()) as pool:
        starts = range(0, len(paths), batch_size)
        coming = (pool.map(one, paths[start : start + batch_size]) for start in starts)
        for batch, _ in pairwise(chain(coming, [()])):  # asks for the next before it yields one
            views, problems = zip(*batch, strict=True)
            yield torch.stack(views), problems


def _printable(path: str) -> str:
    """Return a path in which bytes that are no UTF-8 are escaped: Parquet takes no others."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
