"""Find images that are probably mislabeled, or outliers."""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
import torch
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.nn.functional import cross_entropy

from thawline.data.decoding import show_progress
from thawline.training.linear_head import MAX_BASIS_IMAGES
from thawline.training.logistic_regression import (
    MAX_FOLD_ITERATIONS,
    LinearMap,
    find_basis,
    fit,
    make_folds,
)

FOLDS = 5
REPEATS = 3  # of the cross-validation: their mean flags half as many correct labels as one
C = 0.001  # strong enough that no wrong label is memorized
NEIGHBORS = 10
MAX_DISTANCES_MB = 128  # of all images to their neighborhood at a time; as much again is sorted
MAX_NEIGHBORHOOD = 10_000  # images, so that time grows with the number of images, not its square
FENCE = 3.0  # interquartile ranges above the upper quartile: Tukey's "far out"


def read_components(
    load: Callable[[np.ndarray], Iterable[tuple[Tensor, Tensor]]], count: int
) -> tuple[Tensor, Tensor]:
    """Return principal components (N, R) of all features, and the last layer's features (N, D).

    `load` yields batches of both kinds of features (B, F) and (B, D) for positions from 0 to
    `count` - 1. The features themselves are not kept: they are seven times as wide.
    """
    order = np.random.default_rng(0).permutation(count)
    some, rest = np.split(order, [MAX_BASIS_IMAGES])
    features, last = map(torch.cat, zip(*load(some), strict=True))
    basis, own = find_basis(features, features.shape[1])
    components, last_layer = (part.new_empty(count, part.shape[1]) for part in (own, last))
    components[some], last_layer[some] = own, last
    del features, own, last
    for features, last in load(rest) if len(rest) else ():
        here, rest = np.split(rest, [len(last)])
        components[here], last_layer[here] = basis.project(features), last
    return components, last_layer


def find_label_errors(splits: pd.DataFrame, components: Tensor, seed: int) -> pd.DataFrame:
    """Return the images whose label is probably wrong, the most probable error first.

    A linear head on the features of other images predicts each image, and confident learning
    (Northcutt et al. 2021, arXiv:1911.00068) finds the labels that contradict it by more than
    chance. Images of one group do not predict one another. `components` (N, R) are those of
    `logistic_regression.find_basis` for the rows of `splits`.

    Returns:
        path, split, label, suggested (the more probable class), probability (0 to 1, of the label).
    """
    from cleanlab.filter import find_label_issues

    labels = splits["class_index"].to_numpy()
    probabilities = out_of_sample_probabilities(components, labels, splits.get("group"), seed)
    found = find_label_issues(
        labels,
        probabilities,
        filter_by="prune_by_class",
        return_indices_ranked_by="self_confidence",
        n_jobs=1,
    )
    names = splits.drop_duplicates("class_index").set_index("class_index")["label"]
    table = splits.iloc[found][["path", "split", "label"]].assign(
        suggested=names[probabilities[found].argmax(axis=1)].to_numpy(),
        probability=probabilities[found, labels[found]],
    )
    return table.reset_index(drop=True)


def out_of_sample_probabilities(
    components: Tensor, labels: np.ndarray, groups: pd.Series | None, seed: int
) -> np.ndarray:
    """Return each image's class probabilities (N, C), by heads fitted to images of other groups.

    Components are (N, R), labels (N,) from 0 to C - 1, at least two of each. Where every class is
    one group, nothing contradicts a label, and its probability is 1.
    """
    together = None if groups is None else groups.to_numpy()
    targets, classes = torch.from_numpy(labels).long(), int(labels.max()) + 1
    zeros = components.new_zeros(classes, components.shape[1])
    start = LinearMap(zeros, zeros[:, 0])
    total = np.zeros((len(labels), classes))
    for repeat in show_progress(range(REPEATS), "Cross-validating labels"):
        folds = make_folds(labels, together, seed + repeat, FOLDS)
        if not folds:
            return np.eye(classes)[labels]
        for rest, fold in folds:
            own = components[rest], targets[rest]
            head = fit(*own, C, cross_entropy, start, MAX_FOLD_ITERATIONS)
            total[fold] += head(components[fold]).softmax(dim=1).numpy()
    return total / REPEATS


def find_outliers(splits: pd.DataFrame, features: np.ndarray) -> pd.DataFrame:
    """Return the images that resemble no others, the furthest first.

    An outlier's mean cosine distance to its ten nearest neighbors is more than three interquartile
    ranges above the upper quartile. Neighbors are looked for among `MAX_NEIGHBORHOOD` images.

    Returns:
        path, split, label and distance, the mean to the neighbors (0: equal, 1: unrelated).
    """
    neighbors = min(NEIGHBORS, len(splits) - 1)
    some = np.sort(np.random.default_rng(0).permutation(len(splits))[:MAX_NEIGHBORHOOD])
    index = NearestNeighbors(n_neighbors=neighbors + 1, metric="cosine").fit(features[some])
    with config_context(working_memory=MAX_DISTANCES_MB):
        nearest = index.kneighbors(features)[0]
    distances = nearest[:, :-1].mean(axis=1)
    distances[some] = nearest[some, 1:].mean(axis=1)  # not counting the image itself
    lower, upper = np.percentile(distances, [25, 75])
    table = splits[["path", "split", "label"]].assign(distance=distances)
    table = table[distances > upper + FENCE * (upper - lower)]
    return table.sort_values("distance", ascending=False, ignore_index=True)
