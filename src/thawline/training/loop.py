"""Train a network phase by phase: what happens stands here in the order in which it happens."""

import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from thawline.options import Phase
from thawline.thaw.freezing import check_frozen, evaluation_mode
from thawline.thaw.partition import Tensors
from thawline.training.data_parallel import (
    average_batch_norm_stats,
    local_slice,
    seed_own_dropout,
    sync_gradients,
)
from thawline.training.linear_head import fit_linear_head
from thawline.training.optimizer import ema_weights, load_ema, update_ema
from thawline.training.out_of_memory import explain_out_of_memory, retry_on_smaller_micro_batches
from thawline.training.progress import (
    OnEpoch,
    RunningMetrics,
    TrainingProgress,
    TrainingResult,
    copy_tensors,
    log_step,
    progress_bar,
)
from thawline.training.setup import PhaseContext, Step, TrainingContext, prepare_phase
from thawline.training.state import (
    TrainingCheckpoints,
    begin_or_resume,
    capture_state,
    restore_state,
)

logger = logging.getLogger(__name__)


def train(
    run: TrainingContext,
    phases: Sequence[Phase],
    checkpoints: TrainingCheckpoints | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train the network in place, phase after phase, and return its best and its last state.

    Parameters that stay trainable keep the optimizer's moments from one phase to the next. `run` is
    what `prepare` has just returned, and serves once. With `options.resume`, a training resumes
    from `checkpoints` with the same bits. `on_epoch` receives a row of the history and its epoch,
    from 1, also those before a resume.

    Raises:
        ParameterError: if a phase names no stage of the network.
        TrainingError: if a loss is not finite, memory is short, or a frozen tensor has changed.
        DataError: if an image file cannot be read.
    """
    initial = copy_tensors(run.network)
    progress, saved = begin_or_resume(checkpoints, run, phases, initial)
    report = on_epoch or (lambda row, epoch: None)
    for row in progress.history:
        report(row, row["epoch"])
    optimizer = None
    with progress_bar("Training", sum(phase.epochs for phase in phases)) as update_bar:
        for number, phase in enumerate(phases, start=1):
            if number < progress.phase:
                continue
            with explain_out_of_memory(f"while phase {number} is prepared", run):
                current = prepare_phase(run, phase, optimizer)
            optimizer = current.optimizer
            progress.begin_phase(number, run.network)
            if saved:
                restore_state(saved, run, current)
                saved = None
            epoch = partial(run_epoch, run, current, progress, update_bar)
            state = capture_state(run, current, progress.changed)
            while not progress.phase_has_ended(phase, run.options):
                retry_on_smaller_micro_batches(epoch, state, run, current, progress)
                report(progress.history[-1], len(progress.history))
                state = capture_state(run, current, progress.changed)
                if checkpoints:
                    checkpoints.save(state, progress)
            if checkpoints and number == len(phases):
                checkpoints.save(state, progress, is_last=True)
            load_ema(run.network, current.ema)
            logger.debug("Phase %d: %s", number, current.features.summary())
            progress.contract.append(check_frozen(run.network, progress.sha256_before, number))
    run.network.eval()
    return progress.result(initial, run.network)


def run_epoch(
    run: TrainingContext,
    current: PhaseContext,
    progress: TrainingProgress,
    update_bar: Callable[..., None],
) -> None:
    """Train for an epoch, validate, and keep the weights if they are best."""
    start, description = time.perf_counter(), current.describe()  # rates as the epoch begins
    update_bar(completed=progress.epoch - 1, description=f"Training, epoch {progress.epoch}")
    train = fit_linear_head if current.phase.optimizer == "lbfgs" else train_epoch
    row: dict[str, Any] = train(run, current, progress, update_bar)
    average_batch_norm_stats(current.line.above_train, current.ema)
    with ema_weights(run.network, current.ema):
        row |= validate(run, current, progress)
        row |= {"seconds": time.perf_counter() - start, **description}
        progress.record(row, run.network, run.options.monitor)


def train_epoch(
    run: TrainingContext,
    current: PhaseContext,
    progress: TrainingProgress,
    update_bar: Callable[..., None],
) -> dict[str, float]:
    """Make one pass over the training images; return mean loss, accuracy and images per second."""
    seed_own_dropout(run.parameters.seed, progress.epoch)
    steps = run.plan_epoch(progress.micro_batch)
    boundaries = run.load_steps(current.features, steps, progress.epoch - 1)
    metrics = RunningMetrics(run.train_set, [s.positions for s in steps], current, progress)
    for step, boundary in zip(steps, boundaries, strict=True):
        loss, logits, labels = train_step(run, current, step, boundary)
        metrics.add(loss, logits, labels, step.weight)
        log_step(progress.epoch, metrics.steps, loss, step.weight)
        update_bar(advance=1 / len(steps), figures=metrics.figures)
    loss_mean, accuracy, speed = metrics.compute()
    return {"train_loss": loss_mean, "train_accuracy": accuracy, "images_per_second": speed}


def train_step(
    run: TrainingContext, current: PhaseContext, step: Step, boundary: Tensors
) -> tuple[Tensor, Tensor, Tensor]:
    """Take a step; return its mean loss, logits (N, C) float32 and class indices (N,)."""
    labels = run.train_set.labels_of(step.positions)
    inputs, targets = current.accelerator.as_input(boundary), labels
    if run.mix:
        images, targets = run.mix(inputs[0], labels)  # targets are shares of classes (N, C)
        inputs = (images,)
    with sync_gradients(current.above, step.ends_update):
        with current.accelerator.autocast():
            logits = current.above(*inputs).float()
        loss = run.loss_function(logits, targets)
        run.scaler.scale(loss * step.update_share).backward()
    if step.ends_update:
        current.low_rank.split_gradients()
        if run.options.clip_norm:
            run.scaler.unscale_(current.optimizer)
            nn.utils.clip_grad_norm_(current.trained, run.options.clip_norm)
        run.scaler.step(current.optimizer)
        run.scaler.update()
        current.low_rank.merge()
        current.optimizer.zero_grad()
        current.schedule.step()
        if current.ema:
            update_ema(current.ema, current.line.above_train, current.schedule.last_epoch)
    return loss.detach(), logits.detach(), labels


@torch.no_grad()
def validate(
    run: TrainingContext, current: PhaseContext, progress: TrainingProgress
) -> dict[str, float]:
    """Return cross-entropy and accuracy on the validation images, in evaluation mode."""
    positions, size = local_slice(np.arange(len(run.val_set.labels))), progress.micro_batch
    batches = [positions[at : at + size] for at in range(0, len(positions), size)]
    boundaries = current.features.load(run.val_set.take(batches))
    metrics = RunningMetrics(run.val_set, batches, current, progress)
    # The lower precision passes forward faster, whichever of the two trains faster.
    accelerator = min(run.accelerator, current.accelerator, key=lambda each: each.dtype.itemsize)
    with evaluation_mode(run.network), accelerator.autocast():  # caches cast weights
        for batch, boundary in zip(batches, boundaries, strict=True):
            labels = run.val_set.labels_of(batch)
            inputs = accelerator.as_input(boundary)
            logits = current.line.above_eval(*inputs).float()
            # log_softmax leaves log-probabilities as they are, so this serves for both.
            metrics.add(cross_entropy(logits, labels), logits, labels, weight=len(labels))
    loss, accuracy, _ = metrics.compute()
    return {"val_loss": loss, "val_accuracy": accuracy}
