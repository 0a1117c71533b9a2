"""Fit a linear head in closed form: a logistic regression on what the frozen layers yield."""

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from thawline.networks.all_stages import find_all_stages
from thawline.networks.heads import find_linear
from thawline.networks.stages import HEAD
from thawline.thaw.freezing import evaluation_mode
from thawline.training.logistic_regression import (
    C_PATH,
    Basis,
    cross_validate,
    find_basis,
    fit,
    is_better,
    make_folds,
    measure_contributions,
)
from thawline.training.progress import TrainingProgress
from thawline.training.setup import PhaseContext, TrainingContext

logger = logging.getLogger(__name__)

MAX_BASIS_IMAGES = 3000  # that means, deviations and principal components are computed of
MAX_CV_IMAGES = 20_000  # that C is chosen on


class Candidate(NamedTuple):
    """Features that the head may read."""

    widths: dict[str, int]  # how many, by stage
    basis: Basis  # of them
    sample: Tensor  # components of some training images, (N, R) float32


def fit_linear_head(
    run: TrainingContext,
    current: PhaseContext,
    progress: TrainingProgress,
    update_bar: Callable[..., None],
) -> dict[str, float]:
    """Fit the last linear layer of the head; return loss, accuracy and training images per second.

    It is a multinomial logistic regression on standardized features of evaluation views. C is
    chosen by stratified cross-validation on the training images; those of a group stay in one fold.
    A head on all stages reads the last layer alone, unless the others lower the loss by more than
    the standard error. Standardization is folded into the layer.

    Raises:
        ParameterError: if the head has no linear layer.
        DataError: if an image file cannot be read.
    """
    start = time.perf_counter()
    linear, labels = find_linear(run.network), run.train_set.labels
    load = partial(load_features, run, current, progress, linear)
    loss, seed, count = run.loss_function, run.parameters.seed, len(labels)
    if isinstance(loss, nn.NLLLoss):
        loss = nn.CrossEntropyLoss(loss.weight)  # the same, of logits
    some = np.sort(np.random.default_rng(seed).permutation(count)[:MAX_CV_IMAGES])
    groups = None if run.train_groups is None else run.train_groups[some]
    folds = make_folds(labels[some].cpu().numpy(), groups, seed)
    candidates = load_candidates(run.network, linear, load, some, seed)
    c_path = sorted({min(c, current.phase.max_c) for c in C_PATH})
    common = labels[some], folds, loss, linear.out_features, c_path, update_bar
    curves = [cross_validate(own.sample, *common) for own in candidates]
    gains = np.subtract(curves[-1].losses, curves[0].losses)
    place = 0 if not folds or is_better(gains, groups) else -1
    (widths, basis, components), curve = candidates[place], curves[place]
    contributions = measure_contributions(
        widths, basis, components, labels[some], folds, curve.maps
    )
    if len(some) < count:
        components = components.new_empty(count, components.shape[1])  # held once, not twice
        rest = components
        for batch in load(np.arange(count)):
            own, rest = rest.split([len(batch), len(rest) - len(batch)])
            own.copy_(basis.project(batch))
    c = min(curve.c, current.phase.max_c)
    chosen = fit(components, labels, c, loss, curve.maps[0])
    basis.fold(chosen, linear)
    progress.linear_head = {
        "path": curve.path, "contributions": contributions, "losses": curve.losses,
        "groups": [] if groups is None else pd.factorize(groups)[0].tolist(),  # of the losses
    }  # fmt: skip
    logger.debug(
        "Phase %d: C %g for the features of %s, chosen from %s",
        progress.phase, c, ", ".join(widths), curve,
    )  # fmt: skip
    logits = chosen(components)
    return {
        "train_loss": float(loss(logits, labels)),
        "train_accuracy": float((logits.argmax(dim=1) == labels).float().mean()),
        "images_per_second": count / (time.perf_counter() - start),
    }


def load_candidates(
    network: nn.Module,
    linear: nn.Linear,
    load: Callable[[np.ndarray], Iterator[Tensor]],
    some: np.ndarray,
    seed: int,
) -> list[Candidate]:
    """Return all features of `some` training images, and if they are of all stages, the last's."""
    few = np.sort(np.random.default_rng(seed).permutation(some)[:MAX_BASIS_IMAGES])
    features = torch.cat([*load(few)])
    stages = find_all_stages(network)
    widths = stages.widths if stages else {HEAD: linear.in_features}
    last = {HEAD: widths[HEAD]}
    own = [widths] if widths == last else [widths, last]
    bases, samples = zip(*(find_basis(features, sum(w.values())) for w in own), strict=True)
    if len(few) < len(some):
        parts = zip(*([b.project(batch) for b in bases] for batch in load(some)), strict=True)
        samples = tuple(map(torch.cat, parts))
    return [*map(Candidate, own, bases, samples)]


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
    with linear.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0].float())):
        for boundary in current.features.load(run.train_set.take(batches)):
            with evaluation_mode(run.network), run.accelerator.autocast():
                current.line.above_eval(*boundary)
            yield received.pop()
