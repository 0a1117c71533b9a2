"""Fit a linear head in closed form: a logistic regression on what the frozen layers yield."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax

from thawline.errors import ParameterError
from thawline.networks.all_stages import find_all_stages
from thawline.networks.heads import head_name
from thawline.networks.stages import HEAD
from thawline.thaw.freezing import evaluation_mode
from thawline.training.progress import TrainingProgress
from thawline.training.setup import PhaseContext, TrainingContext

logger = logging.getLogger(__name__)

C_PATH = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # inverse regularization strengths, as scikit-learn's
NUM_FOLDS = 5
MAX_BASIS_IMAGES = 3000  # that means, deviations and principal components are computed of
MAX_COMPONENTS = 1024  # 4 kB per image are held in memory
DEFAULT_C = 0.1  # where all images are of one group
MAX_CV_IMAGES = 20_000  # that C is chosen on
MAX_ITERATIONS = 100
MIN_DEVIATION = 1e-6  # a feature with less is constant

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


def fit_linear_head(
    run: TrainingContext,
    current: PhaseContext,
    progress: TrainingProgress,
    update_bar: Callable[..., None],
) -> dict[str, float]:
    """Fit the last linear layer of the head; return loss, accuracy and training images per second.

    It is a multinomial logistic regression on standardized features of evaluation views. C is
    chosen by stratified cross-validation on the training images; those of a group stay in one fold.
    Standardization is folded into the layer.

    Raises:
        ParameterError: if the head has no linear layer.
        DataError: if an image file cannot be read.
    """
    start = time.perf_counter()
    linear, labels = find_linear(run.network), run.train_set.labels
    loss, seed = _loss_of_logits(run.loss_function), run.parameters.seed
    basis, components = load_components(run, current, progress, linear)
    some = np.sort(np.random.default_rng(seed).permutation(len(labels))[:MAX_CV_IMAGES])
    groups = None if run.train_groups is None else run.train_groups[some]
    folds = make_folds(labels.cpu().numpy()[some], groups, seed)
    sample = components[some], labels[some]
    path, maps, losses = cross_validate(*sample, folds, loss, linear.out_features, update_bar)
    c = min(path, key=itemgetter("loss"))["C"] if folds else DEFAULT_C
    chosen = fit(components, labels, c, loss, maps[0])
    with torch.no_grad():
        weight = chosen.weight @ basis.components.T / basis.deviation
        linear.weight.copy_(weight)
        linear.bias.copy_(chosen.bias - weight @ basis.mean)
    features = find_all_stages(run.network)
    widths = features.widths if features else {HEAD: linear.in_features}
    contributions = measure_contributions(widths, basis, *sample, folds, maps)
    progress.linear_head = {"path": path, "contributions": contributions, "losses": losses}
    logits = chosen(components)
    accuracy = float((logits.argmax(dim=1) == labels).float().mean())
    logger.info("Phase %d: C %g, chosen from %s", progress.phase, c, _describe(path))
    return {
        "train_loss": float(loss(logits, labels)),
        "train_accuracy": accuracy,
        "images_per_second": len(labels) / (time.perf_counter() - start),
    }


def find_linear(network: nn.Module) -> nn.Linear:
    """Return the last linear layer of the head.

    Raises:
        ParameterError: if it has none.
    """
    head = network.get_submodule(head_name(network))
    modules = [module for module in head.modules() if isinstance(module, nn.Linear)]
    layers = [linear for linear in modules if linear.bias is not None]
    if not layers:
        raise ParameterError(
            f"optimizer: lbfgs fits an nn.Linear with a bias, but the head of"
            f" {type(network).__name__} is a {type(head).__name__} without one. Train it with adamw"
            " or sgd."
        )
    return layers[-1]


def load_components(
    run: TrainingContext, current: PhaseContext, progress: TrainingProgress, linear: nn.Linear
) -> tuple[Basis, Tensor]:
    """Return the basis, and the components (N, R) float32 of the training images, on the device."""
    count = len(run.train_set.labels)
    some = np.random.default_rng(run.parameters.seed).permutation(count)[:MAX_BASIS_IMAGES]
    features = torch.cat([*load_features(run, current, progress, linear, np.sort(some))])
    basis = find_basis(features)
    if len(some) == count:
        return basis, basis.project(features)
    every = load_features(run, current, progress, linear, np.arange(count))
    return basis, torch.cat([basis.project(batch) for batch in every])


@torch.no_grad()
def load_features(
    run: TrainingContext,
    current: PhaseContext,
    progress: TrainingProgress,
    linear: nn.Linear,
    positions: np.ndarray,
) -> Iterator[Tensor]:
    """Yield what a linear layer receives, (B, F) float32, for evaluation views in training."""
    size = progress.micro_batch
    batches = [positions[at : at + size] for at in range(0, len(positions), size)]
    received: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0].float()))
    try:
        for boundary in current.features.load(run.train_set.take(batches)):
            with evaluation_mode(run.network), run.accelerator.autocast():
                current.line.above_eval(*boundary)
            yield received.pop()
    finally:
        hook.remove()


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


def _describe(path: Sequence[dict[str, float]]) -> str:
    return ", ".join(
        f"{row['C']:g} (accuracy {row['accuracy']:.3f}, loss {row['loss']:.3f})" for row in path
    )


def _loss_of_logits(loss: nn.Module) -> Loss:
    """Return the loss of a training for logits, whatever the network returns."""
    if isinstance(loss, nn.NLLLoss):
        return lambda logits, labels: loss(log_softmax(logits, dim=1), labels)
    return loss
