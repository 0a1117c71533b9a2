"""Multinomial logistic regression on standardized principal components, chosen by folds."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor
from torch.nn.functional import cross_entropy

C_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularization strengths, as scikit-learn's
NUM_FOLDS = 5
MAX_COMPONENTS = 1024  # 4 kB per image are held in memory
MAX_ITERATIONS = 100
MIN_DEVIATION = 1e-6  # a feature with less is constant
ROUNDING = 1e-9  # of a sum of gains

Folds = Sequence[tuple[np.ndarray, np.ndarray]]  # positions of the rest and of the fold, (N,) int64
Loss = Callable[[Tensor, Tensor], Tensor]  # mean over images, of logits (N, C) and labels (N,)


class Basis(NamedTuple):
    """Standardized principal components of features."""

    mean: Tensor  # (F,)
    deviation: Tensor  # (F,)
    components: Tensor  # (F, R), orthonormal

    def project(self, features: Tensor) -> Tensor:
        """Return components (N, R) of features (N, F)."""
        return (features - self.mean) / self.deviation @ self.components


class LinearMap(NamedTuple):
    """From components to logits."""

    weight: Tensor  # (C, R)
    bias: Tensor  # (C,)

    def __call__(self, components: Tensor) -> Tensor:
        """Return logits (N, C)."""
        return components @ self.weight.T + self.bias


def find_basis(features: Tensor) -> Basis:
    """Return the principal components of features (N, F), standardized."""
    mean, deviation = features.mean(dim=0), features.std(dim=0, correction=0)
    deviation = torch.where(deviation > MIN_DEVIATION, deviation, 1.0)
    standardized = (features - mean) / deviation
    is_wide = len(features) < features.shape[1]
    gram = standardized @ standardized.T if is_wide else standardized.T @ standardized
    values, vectors = torch.linalg.eigh(gram)
    count = min(MAX_COMPONENTS, int((values > MIN_DEVIATION * values[-1]).sum()))
    vectors = vectors[:, -count:]
    if is_wide:
        vectors = standardized.T @ (vectors / values[-count:].sqrt())
    return Basis(mean, deviation, vectors)


def fit(components: Tensor, labels: Tensor, c: float, loss: Loss, start: LinearMap) -> LinearMap:
    """Return the map that minimizes c · N · loss + ½ ‖weight‖², from one near it.

    By L-BFGS, in units that make the loss about equally curved in every direction.
    """
    classes, penalty = len(start.bias), 1 / (c * len(components))
    curvature = (1 - 1 / classes) / classes  # of the loss in a logit, where classes are even
    unit = (curvature * components.square().mean(dim=0) + penalty).rsqrt()
    scaled = (start.weight / unit).requires_grad_()
    bias = start.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [scaled, bias], max_iter=MAX_ITERATIONS, tolerance_grad=1e-4, line_search_fn="strong_wolfe"
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
    update_bar: Callable[..., None],
) -> tuple[list[dict[str, float]], list[LinearMap], list[float]]:
    """Return C, loss and accuracy on images that maps were not fitted to, for a path of C.

    The path ends where the loss rises. The maps of the best C are returned too, one per fold, and
    their cross-entropy for each image.
    """
    parts = [(torch.from_numpy(rest), torch.from_numpy(fold)) for rest, fold in folds]
    zeros = components.new_zeros(classes, components.shape[1])
    start = LinearMap(zeros, zeros[:, 0])
    path: list[dict[str, float]] = []
    maps = best = [start] * max(1, len(folds))
    losses = labels.new_zeros(len(labels), dtype=torch.float32)
    order = torch.cat([fold for _, fold in parts]) if parts else labels.new_zeros(0)
    for c in C_PATH if folds else ():
        logits, targets = [], []
        for number, (rest, fold) in enumerate(parts):
            maps[number] = fit(components[rest], labels[rest], c, loss, maps[number])
            logits.append(maps[number](components[fold]))
            targets.append(labels[fold])
            update_bar(advance=1 / len(parts) / len(C_PATH), figures=f"C {c:g}")
        joined, truth = torch.cat(logits), torch.cat(targets)
        accuracy = float((joined.argmax(dim=1) == truth).float().mean())
        path.append({"C": c, "loss": float(loss(joined, truth)), "accuracy": accuracy})
        if path[-1]["loss"] > min(row["loss"] for row in path):
            break
        best = [*maps]
        losses[order] = cross_entropy(joined, truth, reduction="none")
    return path, best, losses.tolist()


def make_folds(labels: np.ndarray, groups: np.ndarray | None, seed: int) -> Folds:
    """Return folds that each have images, or groups, of most classes; none if there is one group.

    Returns:
        for every fold the positions of the rest and its own, (N,) int64.
    """
    units = np.arange(len(labels)) if groups is None else pd.factorize(groups)[0]
    per_class = pd.Series(units).groupby(labels).nunique()
    if units.max() == 0 or per_class.max() == 1:
        return []
    count = max(2, min(NUM_FOLDS, int(per_class.min())))
    make = StratifiedKFold if groups is None else StratifiedGroupKFold
    folds = make(count, shuffle=True, random_state=seed)
    return [*folds.split(labels, labels, None if groups is None else units)]


def measure_contributions(
    widths: dict[str, int], basis: Basis, components: Tensor, labels: Tensor, folds: Folds,
    maps: Sequence[LinearMap],
) -> list[dict[str, Any]]:  # fmt: skip
    """Return by stage how much cross-validated accuracy is lost without its features.

    Nothing is fitted again: the features of the stage are replaced by their means.
    """
    rows, start = [], 0
    for stage, width in widths.items():
        own = basis.components[start : start + width]
        start += width
        lost = 0
        for (_, fold), fitted in zip(folds, maps, strict=False):
            logits, truth = fitted(components[fold]), labels[fold]
            without = logits - components[fold] @ (own.T @ (own @ fitted.weight.T))
            lost += int((logits.argmax(1) == truth).sum() - (without.argmax(1) == truth).sum())
        rows.append({"stage": stage, "features": width, "accuracy_lost": lost / len(labels)})
    return rows
