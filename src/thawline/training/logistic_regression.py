"""Multinomial logistic regression on standardized principal components, chosen by folds."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thawline.options.training import MAX_C

C_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, MAX_C)  # inverse regularization strengths, as scikit-learn's
DEFAULT_C = 0.1  # where all images are of one group
NUM_FOLDS = 3
MAX_COMPONENTS = 1024  # 4 kB per image are held in memory
MAX_ITERATIONS = 100
MAX_FOLD_ITERATIONS = 15  # as many as the choice of C needs
MIN_DEVIATION = 1e-6  # a feature with less is constant
ROUNDING = 1e-9  # of a sum of gains

Folds = Sequence[tuple[np.ndarray, np.ndarray]]  # positions of the rest and of the fold, (N,) int64
Loss = Callable[[Tensor, Tensor], Tensor]  # mean over images, of logits (N, C) and labels (N,)


class LinearMap(NamedTuple):
    """From components to logits."""

    weight: Tensor  # (C, R)
    bias: Tensor  # (C,)

    def __call__(self, components: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return components @ self.weight.T + self.bias


class Basis(NamedTuple):
    """Standardized principal components of features."""

    mean: Tensor  # (F,)
    deviation: Tensor  # (F,)
    components: Tensor  # (F, R), orthonormal

    def project(self, features: Tensor) -> Tensor:
        """Return components (N, R) of the last F features of (N, F or more)."""
        own = features[:, -len(self.mean) :]
        return (own - self.mean) / self.deviation @ self.components

    @torch.no_grad()
    def fold(self, fitted: LinearMap, layer: nn.Linear) -> None:
        """Write a map of components to a layer, as weights of the last F features; others get 0."""
        weight = fitted.weight @ self.components.T / self.deviation
        layer.weight.zero_()
        layer.weight[:, -len(self.mean) :] = weight
        layer.bias.copy_(fitted.bias - weight @ self.mean)


class Curve(NamedTuple):
    """Cross-validated heads by C."""

    path: list[dict[str, float]]  # C, loss and accuracy; none without folds
    maps: list[LinearMap]  # of the best C, one per fold
    losses: list[float]  # their cross-entropy for each image, (N,)

    @property
    def c(self) -> float:
        """The C of the lowest loss."""
        return min(self.path, key=lambda row: row["loss"])["C"] if self.path else DEFAULT_C

    def __str__(self) -> str:
        """Return the path."""
        return ", ".join(
            f"{row['C']:g} (accuracy {row['accuracy']:.3f}, loss {row['loss']:.3f})"
            for row in self.path
        )


def find_basis(features: Tensor, width: int) -> tuple[Basis, Tensor]:
    """Return the basis of the last `width` of features (N, F), and their components (N, R)."""
    features = features[:, -width:]
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = torch.where(deviation > MIN_DEVIATION, deviation, 1.0)
    standardized = (features - mean) / deviation
    is_wide = len(features) < features.shape[1]
    gram = standardized @ standardized.T if is_wide else standardized.T @ standardized
    values, vectors = torch.linalg.eigh(gram)
    rank = int((values > MIN_DEVIATION * values[-1].clamp_min(MIN_DEVIATION)).sum())
    count = min(MAX_COMPONENTS, max(1, rank))
    vectors = vectors[:, -count:]
    if not is_wide:
        return Basis(mean, deviation, vectors), standardized @ vectors
    scale = values[-count:].clamp_min(MIN_DEVIATION).sqrt()
    return Basis(mean, deviation, standardized.T @ (vectors / scale)), vectors * scale


def fit(
    components: Tensor,
    labels: Tensor,
    c: float,
    loss: Loss,
    start: LinearMap,
    iterations: int = MAX_ITERATIONS,
) -> LinearMap:
    """Return the map that minimizes c · N · loss + ½ ‖weight‖², from one near it.

    By L-BFGS, in units that make the loss about equally curved in every direction.
    """
    classes, penalty = len(start.bias), 1 / (c * len(components))
    curvature = (1 - 1 / classes) / classes  # of the loss in a logit, where classes are even
    unit = (curvature * components.square().mean(dim=0) + penalty).rsqrt()
    scaled = (start.weight / unit).requires_grad_()
    bias = start.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled, bias], max_iter=iterations, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        current = LinearMap(scaled * unit, bias)
        objective = loss(current(components), labels)
        objective += 0.5 * penalty * current.weight.square().sum()
        objective.backward()
        return objective.item()

    with torch.enable_grad():
        optimizer.step(closure)
    return LinearMap((scaled * unit).detach(), bias.detach())


def cross_validate(
    components: Tensor,
    labels: Tensor,
    folds: Folds,
    loss: Loss,
    classes: int,
    c_path: Sequence[float],
    update_bar: Callable[..., None],
) -> Curve:
    """Return loss and accuracy on images that maps were not fitted to, for rising C.

    The path ends where the loss rises. Without folds there is one map, which is 0.
    """
    zeros = components.new_zeros(classes, components.shape[1])
    start = LinearMap(zeros, zeros[:, 0])
    if not folds:
        return Curve([], [start], [0.0] * len(labels))
    parts = [(torch.from_numpy(rest), torch.from_numpy(fold)) for rest, fold in folds]
    order = torch.cat([fold for _, fold in parts])
    truth, losses = labels[order], labels.new_zeros(len(labels), dtype=torch.float32)
    path: list[dict[str, float]] = []
    maps = best = [start] * len(folds)
    for c in c_path:
        logits = []
        for number, (rest, fold) in enumerate(parts):
            own = components[rest], labels[rest]
            maps[number] = fit(*own, c, loss, maps[number], MAX_FOLD_ITERATIONS)
            logits.append(maps[number](components[fold]))
            update_bar(advance=1 / len(parts) / len(c_path), figures=f"C {c:g}")
        joined = torch.cat(logits)
        accuracy = float((joined.argmax(dim=1) == truth).float().mean())
        path.append({"C": c, "loss": float(loss(joined, truth)), "accuracy": accuracy})
        if path[-1]["loss"] > min(row["loss"] for row in path):
            break
        best = [*maps]
        losses[order] = cross_entropy(joined, truth, reduction="none")
    return Curve(path, best, losses.tolist())


def make_folds(
    labels: np.ndarray, groups: np.ndarray | None, seed: int, most: int = NUM_FOLDS
) -> Folds:
    """Return folds that each have images, or groups, of most classes; none if there is one group.

    Returns:
        for every fold the positions of the rest and its own, (N,) int64.
    """
    units = np.arange(len(labels)) if groups is None else pd.factorize(groups)[0]
    per_class = pd.Series(units).groupby(labels).nunique()
    if units.max() == 0 or per_class.max() == 1:
        return []
    count = max(2, min(most, int(per_class.min())))
    make = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = make(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():  # classes with fewer images or groups than folds are expected
        warnings.filterwarnings("ignore", "The least populated class")
        return [*folds.split(labels, labels, None if groups is None else units)]


def measure_contributions(
    widths: dict[str, int], basis: Basis, components: Tensor, labels: Tensor, folds: Folds,
    maps: Sequence[LinearMap],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return by stage how much cross-validated accuracy is lost without its features.

    Nothing is fitted again: the features of the stage are replaced by their means.
    """
    rows, parts = [], basis.components.split([*widths.values()])
    for (stage, width), own in zip(widths.items(), parts, strict=True):
        lost = 0
        for (_, fold), fitted in zip(folds, maps, strict=False):
            logits, truth = fitted(components[fold]), labels[fold]
            without = logits - components[fold] @ (own.T @ (own @ fitted.weight.T))
            lost += int((logits.argmax(1) == truth).sum() - (without.argmax(1) == truth).sum())
        rows.append({"stage": stage, "features": width, "accuracy_lost": lost / len(labels)})
    return rows


def is_better(gains: np.ndarray, groups: np.ndarray | None, errors: float = 1.0) -> bool:
    """Return whether the mean of paired gains (N,) exceeds so many standard errors, by groups (N,).

    One gain alone is never better, nor is that of a single group.
    """
    units = np.arange(len(gains)) if groups is None else groups
    sums = pd.Series(gains - gains.mean()).groupby(units).sum().to_numpy()
    count = len(sums)
    return count > 1 and bool(
        gains.sum() > errors * np.sqrt((sums**2).sum() * count / (count - 1)) + ROUNDING
    )
