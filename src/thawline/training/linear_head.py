"""Fit a linear head in closed form: a logistic regression on what the frozen layers yield."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from thawline.errors import ParameterError
from thawline.networks.all_stages import find_all_stages
from thawline.networks.heads import head_name
from thawline.networks.stages import HEAD
from thawline.thaw.freezing import evaluation_mode
from thawline.training.logistic_regression import (
    Basis,
    Loss,
    cross_validate,
    find_basis,
    fit,
    make_folds,
    measure_contributions,
)
from thawline.training.progress import TrainingProgress
from thawline.training.setup import PhaseContext, TrainingContext

logger = logging.getLogger(__name__)

MAX_BASIS_IMAGES = 3000  # that means, deviations and principal components are computed of
DEFAULT_C = 0.1  # where all images are of one group
MAX_CV_IMAGES = 20_000  # that C is chosen on


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


def _describe(path: Sequence[dict[str, float]]) -> str:
    return ", ".join(
        f"{row['C']:g} (accuracy {row['accuracy']:.3f}, loss {row['loss']:.3f})" for row in path
    )


def _loss_of_logits(loss: nn.Module) -> Loss:
    """Return the loss of a training for logits, whatever the network returns."""
    if isinstance(loss, nn.NLLLoss):
        return lambda logits, labels: loss(log_softmax(logits, dim=1), labels)
    return loss
