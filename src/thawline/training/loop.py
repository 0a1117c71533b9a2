"""Train a network phase by phase: the loop stands here in the order in which it happens."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from thawline.data.loading import ViewLoader
from thawline.data.transforms import BatchMixer, Transforms
from thawline.errors import TrainingError
from thawline.options import Phase, TrainingOptions
from thawline.thaw.cache import ActivationCache
from thawline.thaw.device import autocast, compute_dtype, make_accelerator
from thawline.thaw.features import FeatureLoader
from thawline.thaw.freezing import (
    check_frozen,
    find_undecayed,
    freeze_layers,
    frozen_tensors,
    hash_tensors,
    parameter_groups,
)
from thawline.thaw.image_set import ImageSet, ImageView, Positions, image_set
from thawline.thaw.line import ThawLine, split_at_thaw_line
from thawline.training.data_parallel import (
    SyncedBatchNorm,
    add_up,
    add_up_gradients,
    average_statistics,
    rank,
    share,
    workers,
)
from thawline.training.ema import WeightEma
from thawline.training.memory import keep_freed_memory
from thawline.training.micro_batches import (
    Loss,
    add_gradients,
    count_parts,
    explain_memory,
    loss_weight,
)
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

# What the history has of every epoch; lr/STAGE comes on top of it.
COLUMNS = [
    "epoch", "phase", "train_loss", "train_accuracy", "images_per_second", "val_loss",
    "val_accuracy", "seconds", "thaw_line", "trainable_parameters", "lr",
]  # fmt: skip

MAX_NAMES_IN_MESSAGE = 3  # images of a batch that a message names
# PyTorch's own 65,536 overflows at first, and so skips steps of which a short training has few.
INITIAL_SCALE = 1024.0

OnEpoch = Callable[[dict[str, Any], int], None]
State = dict[str, Tensor]


class TrainingResult(NamedTuple):
    """What training leaves behind.

    Attributes:
        best: state dict of the best epoch by `training.monitor`, on the CPU.
        last: state dict after the last epoch, on the CPU.
        best_epoch: its number, from 1; 0 where no phase has an epoch.
        history: a row an epoch: epoch, phase, train and val loss and accuracy, images_per_second,
            thaw_line (what crosses it), trainable_parameters, lr (of the part nearest the
            output), and lr/STAGE for every stage that is trained.
        freeze_contract: a record a phase: what was frozen, and its SHA-256 before and after.
    """

    best: State
    last: State
    best_epoch: int
    history: pd.DataFrame
    freeze_contract: list[dict[str, Any]]


@dataclass
class TrainingProgress:
    """How far training has come: with the tensors and the generators all that resuming needs.

    Attributes:
        phase: number of the phase, from 1.
        sha256_before: of what that phase freezes.
        changed: names of all tensors that training may have changed so far.
        history: records of the epochs.
        contract: records of the phases that have ended.
        best: the changed tensors in the best epoch.
        best_epoch: its number, 0 before the first.
        best_score: see `score`.
        epochs_since_best: epochs of this phase since the best one.
        micro_batch: images of a batch that the device has memory for at once; None: all.
    """

    phase: int = 0
    sha256_before: str = ""
    changed: list[str] = field(default_factory=list)
    history: list[dict[str, Any]] = field(default_factory=list)
    contract: list[dict[str, Any]] = field(default_factory=list)
    best: State = field(default_factory=dict)
    best_epoch: int = 0
    best_score: tuple[float, float] = (-math.inf, -math.inf)
    epochs_since_best: int = 0
    micro_batch: int | None = None

    def begin(self, phase: int, network: nn.Module) -> None:
        """Note the beginning of a phase, for which the network is frozen already."""
        frozen = frozen_tensors(network)
        self.phase, self.epochs_since_best, self.sha256_before = phase, 0, hash_tensors(frozen)
        known = {*frozen, *self.changed}
        self.changed += [name for name in network.state_dict() if name not in known]

    def has_ended(self, phase: Phase, options: TrainingOptions) -> bool:
        """Return whether the phase has had its epochs, or too many without a better one."""
        patience = phase.patience or options.patience
        if patience and self.epochs_since_best >= patience:
            logger.info("Phase %d stops: no better epoch in %d", self.phase, self.epochs_since_best)
            return True
        return sum(row["phase"] == self.phase for row in self.history) >= phase.epochs


class TrainingContext(NamedTuple):
    """What all phases of a training have in common."""

    network: nn.Module
    accelerator: Accelerator
    train_set: ImageSet
    val_set: ImageSet
    loss_function: Loss
    loader: ViewLoader
    store: ActivationCache
    transforms: Transforms
    options: TrainingOptions
    seed: int
    views: int | None
    mix: BatchMixer | None
    orders: torch.Generator
    sync_batch_norm: bool
    scaler: torch.amp.GradScaler

    def next_order(self) -> list[np.ndarray]:
        """Return the positions of training images of the next epoch, in batches."""
        balanced = self.options.sampling == "balanced"
        return self.train_set.shuffle(
            self.orders, self.options.batch_size, balanced, fewest=max(2, workers())
        )

    def loss_weight(self, positions: Positions) -> Any:
        """Return what the mean loss over training images divides by."""
        if self.mix:
            return len(positions)
        return loss_weight(self.loss_function, self.train_set.labels[positions])

    def random_views(self, batches: Sequence[Positions], epoch: int) -> list[list[ImageView]]:
        """Return the views of training images that an epoch, counted from 0, sees."""
        return self.train_set.take(batches, epoch % self.views if self.views else epoch)


class PhaseContext(NamedTuple):
    """What one phase is trained with."""

    line: ThawLine
    activations: FeatureLoader
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    average: WeightEma | None


def train(
    setup: TrainingContext,
    phases: Sequence[Phase],
    states: TrainingCheckpoints | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train a network in place, phase after phase, and return its best and its last state.

    Parameters that stay trainable keep the optimizer's state from one phase to the next.

    Args:
        setup: what `prepare` has just returned; it serves for one training.
        phases: what is trainable, for how long and how fast.
        states: keeps the state of a training that is interrupted; with `options.resume` it goes on
            from there, and what it yields is the same to the bit as if it had not been.
        on_epoch: called after every epoch with its row of the history and its number, from 1; when
            training goes on, first for the epochs before the interruption.

    Raises:
        ParameterError: when a phase names no stage of the network.
        TrainingError: when the loss is no longer finite, the device has no memory for the smallest
            part of a batch, or a frozen tensor changed.
        DataError: when an image file cannot be read, or is no longer there.
    """
    network, options = setup.network, setup.options
    initial = {name: _copy(tensor) for name, tensor in network.state_dict().items()}
    course, saved, current = TrainingProgress(), None, None
    if states:
        key = _key(initial, phases, setup)
        saved = states.load(key) if options.resume else None
    if saved:
        course = TrainingProgress(**saved["course"])
        network.load_state_dict(saved["tensors"], strict=False)
        logger.info("Training goes on after epoch %d", len(course.history))
        if on_epoch:
            for row in course.history:
                on_epoch(row, row["epoch"])
    steps, epochs = batches_per_epoch(setup), sum(phase.epochs for phase in phases)
    with progress_bar("Training, epoch") as bar:
        task = bar.add_task(
            "", total=steps * epochs, completed=steps * len(course.history), epoch="", figures=""
        )
        for number, phase in enumerate(phases, start=1):
            if number < course.phase:
                continue
            current = prepare_phase(setup, phase, current and current.optimizer)
            if number > course.phase:
                course.begin(number, network)
            if saved:
                _restore(saved, setup, current)
                saved = None
            while not course.has_ended(phase, options):
                bar.update(task, epoch=f"{len(course.history) + 1}/{epochs}")
                with explain_memory(len(course.history) + 1):
                    _run_epoch(setup, current, course, partial(bar.update, task))
                row = course.history[-1]
                logger.info(_epoch_line(row))
                if on_epoch:
                    on_epoch(row, row["epoch"])
                if states and rank() == 0:
                    states.save(key, partial(_state, setup, current, course))
            if current.average:
                current.average.swap()
            logger.info("Phase %d: %s", number, current.activations.summary())
            course.contract.append(check_frozen(network, course.sha256_before, number))
    network.eval()
    return TrainingResult(
        initial | course.best,
        initial | _tensors(network, course.changed),
        course.best_epoch,
        pd.DataFrame(course.history or None, columns=None if course.history else COLUMNS),
        course.contract,
    )


def prepare(
    network: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    seed: int,
    views: int | None = None,
    store: ActivationCache | None = None,
    log_probabilities: bool = False,
    mix: BatchMixer | None = None,
    sync_batch_norm: bool = False,
) -> TrainingContext:
    """Seed all generators, bring the network to its device and return what will train it there.

    Args:
        network: yields logits, or with `log_probabilities` logarithms of probabilities (N, C).
        splits: the table of `split_dataset`.
        transforms: how files become what the network sees.
        options: everything about training but the phases.
        seed: of the order of images and of dropout; on one CPU the same seed gives the same bits.
        views: random views of each image, taken in turn; None is a new one in every epoch.
        store: keeps what the frozen part yields; None computes it in every epoch.
        log_probabilities: train by negative log likelihood instead of cross-entropy.
        mix: see `make_mix`; with it, nothing that is frozen can run ahead.
        sync_batch_norm: whether batch norm in training sees the shares of all workers.

    Raises:
        ParameterError: when the device is not there.
        DataError: when an image file cannot be read.
    """
    set_seed(seed)
    accelerator = make_accelerator(options)
    if accelerator.device.type == "cpu":
        keep_freed_memory()
    network.to(accelerator.device).to(memory_format=torch.channels_last)
    logger.info("Training on %s in %s", accelerator.device, compute_dtype(accelerator))
    if mix:
        logger.info("%s: all of the network runs in every step, and nothing is kept", mix)
    return TrainingContext(
        network,
        accelerator,
        image_set(splits, "train", accelerator.device),
        image_set(splits, "val", accelerator.device),
        make_loss(splits, options, log_probabilities).to(accelerator.device),
        ViewLoader(transforms, options.num_workers, accelerator.device.type == "cuda"),
        store if store and not mix else ActivationCache(Path(), max_gb=0),
        transforms,
        options,
        seed,
        views,
        mix,
        torch.Generator().manual_seed(seed),
        sync_batch_norm and workers() > 1,
        torch.amp.GradScaler(
            accelerator.device.type,
            INITIAL_SCALE,
            enabled=compute_dtype(accelerator) == torch.float16,
        ),
    )


def prepare_phase(
    setup: TrainingContext, phase: Phase, previous: torch.optim.Optimizer | None = None
) -> PhaseContext:
    """Freeze the network as a phase needs it, and return what trains the rest.

    Raises:
        ParameterError: when the phase names no stage of the network.
    """
    network = setup.network
    freeze_layers(network, phase)
    line = (
        ThawLine(None, network, network)  # mixed images cross it: none is ever seen again
        if setup.mix
        else split_at_thaw_line(network, setup.transforms.preprocessing.size)
    )
    activations = FeatureLoader(
        line, setup.transforms, setup.loader, setup.store, setup.accelerator.device,
        compute_dtype(setup.accelerator),
        entries=(setup.views or 0) * len(setup.train_set.labels) + len(setup.val_set.labels),
    )  # fmt: skip
    optimizer = make_optimizer(network, phase, setup.options, previous)
    schedule = make_schedule(optimizer, phase, batches_per_epoch(setup), setup.options)
    return PhaseContext(line, activations, optimizer, schedule, _average(network, setup.options))


def batches_per_epoch(setup: TrainingContext) -> int:
    """Return the number of batches of training images."""
    return len(setup.train_set.shuffle(torch.Generator(), setup.options.batch_size))


def make_loss(splits: pd.DataFrame, options: TrainingOptions, log_probabilities: bool) -> Loss:
    """Return the loss that fits what the network yields; neither ever meets a softmax before it."""
    weights = None
    if options.class_weights == "balanced":
        counts = splits.loc[splits["split"] == "train", "class_index"].value_counts().sort_index()
        balanced = (counts.sum() / (len(counts) * counts)).to_numpy()
        weights = torch.tensor(balanced, dtype=torch.float32)
    if log_probabilities:
        return nn.NLLLoss(weights)
    return nn.CrossEntropyLoss(weights, label_smoothing=options.label_smoothing)


def make_optimizer(
    network: nn.Module,
    phase: Phase,
    options: TrainingOptions,
    previous: torch.optim.Optimizer | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer of exactly the trainable parameters, the head's groups first.

    A stage has one group of what weight decay acts on, and one of what it leaves alone; both have
    its name. What `previous` knows of them (moments, momentum) is taken over, if it is of the same
    kind.

    Raises:
        TrainingError: when it would miss a trainable parameter.
    """
    groups = parameter_groups(network, phase)
    held = sum(len(group["params"]) for group in groups)
    if held != sum(p.requires_grad for p in network.parameters()):
        raise TrainingError(f"{held} tensors in the optimizer are not all trainable ones.")
    groups = _divide_by_decay(network, groups, options)
    optimizer: torch.optim.Optimizer
    if (phase.optimizer or options.optimizer) == "adamw":
        optimizer = torch.optim.AdamW(groups)
    else:
        optimizer = torch.optim.SGD(groups, momentum=options.momentum)
    if type(previous) is type(optimizer):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in previous.state:
                    optimizer.state[parameter] = previous.state[parameter]
    return optimizer


def _divide_by_decay(
    network: nn.Module, groups: Sequence[dict[str, Any]], options: TrainingOptions
) -> list[dict[str, Any]]:
    """Return the groups, each divided into what weight decay acts on and what it leaves alone."""
    undecayed: set[int] = set()
    if not options.decay_all:
        undecayed = {id(network.get_parameter(name)) for name in find_undecayed(network)}
    divided = []
    for group in groups:
        for is_spared, weight_decay in ((False, options.weight_decay), (True, 0.0)):
            some = [p for p in group["params"] if (id(p) in undecayed) == is_spared]
            if some:
                divided.append({**group, "params": some, "weight_decay": weight_decay})
    return divided


def make_schedule(
    optimizer: torch.optim.Optimizer, phase: Phase, batches: int, options: TrainingOptions
) -> LambdaLR:
    """Return the schedule of a phase with so many batches an epoch, to step after each update."""
    updates = math.ceil(batches / options.gradient_accumulation_steps)
    return LambdaLR(optimizer, lambda update: lr_factor(update, phase, updates, options))


def lr_factor(step: int, phase: Phase, updates_per_epoch: int, options: TrainingOptions) -> float:
    """Return what the learning rates are multiplied by at an update, counted from 0 in a phase.

    A linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983),
    or a drop every `step_epochs`, or nothing.
    """
    total = phase.epochs * updates_per_epoch
    warmup = int(options.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    schedule = phase.schedule or options.schedule
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return options.step_factor ** (step // (options.step_epochs * updates_per_epoch))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _run_epoch(
    setup: TrainingContext,
    current: PhaseContext,
    course: TrainingProgress,
    update_bar: Callable[..., None],
) -> None:
    """Train for an epoch, validate, and note in `course` how it went and whether it is the best."""
    start = time.perf_counter()
    rates = {group["name"]: group["lr"] for group in current.optimizer.param_groups}
    row: dict[str, Any] = {"epoch": len(course.history) + 1, "phase": course.phase}
    if rank():  # another dropout than the first worker's, whose state alone is saved
        torch.manual_seed(hash((setup.seed, rank(), row["epoch"])))
    row |= _train_epoch(setup, current, course, update_bar)
    with current.average.in_place() if current.average else nullcontext():
        row |= _validate(setup, current, course)
        _check_finite(row["val_loss"], f"val_loss is {row['val_loss']} after", course, current)
        reached = score(row, setup.options.monitor)
        course.epochs_since_best += 1
        if reached > course.best_score:
            course.best, course.best_score = _tensors(setup.network, course.changed), reached
            course.best_epoch, course.epochs_since_best = row["epoch"], 0
    row |= {
        "seconds": time.perf_counter() - start,
        "thaw_line": ", ".join(current.line.boundary),
        "trainable_parameters": sum(
            p.numel() for p in setup.network.parameters() if p.requires_grad
        ),
        "lr": next(iter(rates.values())),
        **{f"lr/{stage}": rate for stage, rate in rates.items()},
    }
    course.history.append(row)


def _train_epoch(
    setup: TrainingContext,
    current: PhaseContext,
    course: TrainingProgress,
    update_bar: Callable[..., None],
) -> dict[str, float]:
    """Return the mean loss, the accuracy and the speed of one pass over the training images."""
    options, device = setup.options, setup.accelerator.device
    trained = [p for group in current.optimizer.param_groups for p in group["params"]]
    whole_order = setup.next_order()
    order = [share(batch) for batch in whole_order]
    batches = current.activations.load(
        setup.random_views(order, len(course.history)), keep=setup.views is not None
    )
    # Not a tensor for each batch: such small ones, kept in between, would break up the memory that
    # large ones have freed.
    losses = torch.zeros(len(order), device=device)
    loss_sum, correct = torch.zeros((), device=device), torch.zeros((), device=device)
    seen, start = 0, time.perf_counter()
    for step, (positions, crossing) in enumerate(zip(whole_order, batches, strict=True), start=1):
        labels = setup.train_set.labels[positions]
        truth = share(labels)
        inputs, targets = crossing, truth
        if setup.mix:  # images cross the line, and the targets are the classes' shares (N, C)
            images, targets = setup.mix(crossing[0], truth)
            inputs = (images,)
        weight = setup.loss_weight(positions)
        if (step - 1) % options.gradient_accumulation_steps == 0:
            update = whole_order[step - 1 : step - 1 + options.gradient_accumulation_steps]
            update_weight = sum(map(setup.loss_weight, update))
        with SyncedBatchNorm() if setup.sync_batch_norm else nullcontext():
            loss, outputs, course.micro_batch = add_gradients(
                setup.network, trained, partial(_answer, setup, current.line.above_train),
                setup.loss_function, inputs, targets, weight,
                partial(_backward, setup, weight / update_weight), course.micro_batch,
                may_divide=not setup.sync_batch_norm,
            )  # fmt: skip
        if step % options.gradient_accumulation_steps == 0 or step == len(order):
            add_up_gradients(trained)
            if not setup.sync_batch_norm:
                average_statistics(setup.network)
            if options.clip_norm:
                setup.scaler.unscale_(current.optimizer)
                nn.utils.clip_grad_norm_(trained, options.clip_norm)
            setup.scaler.step(current.optimizer)
            setup.scaler.update()
            current.schedule.step()
            current.optimizer.zero_grad()
            if current.average:
                current.average.update()
        losses[step - 1] = loss
        loss_sum += loss * len(labels)
        correct += (outputs.argmax(dim=1) == truth).sum()
        seen += len(labels)
        update_bar(advance=1)
        if logger.isEnabledFor(logging.DEBUG):
            (mean,) = add_up(loss.item(), device=device)
            logger.debug("Epoch %d, step %d: loss %.6f", len(course.history) + 1, step, mean)
        if device.type == "cpu" or step % 10 == 0:  # elsewhere reading means waiting
            speed = seen / (time.perf_counter() - start)
            loss_mean, accuracy = loss_sum.item() / seen, correct.item() / seen
            _check_losses(loss_mean, losses, order, setup, current, course)
            figures = f"loss {loss_mean:.3f} accuracy {accuracy:.3f} {speed:.0f} images/s"
            update_bar(figures=figures)
    _check_losses(loss_sum.item(), losses, order, setup, current, course)
    whole_loss, whole_correct = add_up(loss_sum.item(), correct.item(), device=device)
    return {
        "train_loss": whole_loss / seen,
        "train_accuracy": whole_correct / seen,
        "images_per_second": seen / (time.perf_counter() - start),
    }


def _answer(setup: TrainingContext, above: Callable[..., Tensor], *crossing: Tensor) -> Tensor:
    """Return the outputs (N, C) float32 for what crosses the line."""
    with autocast(setup.accelerator):
        return above(*crossing).float()


def _backward(setup: TrainingContext, share: Any, loss: Tensor) -> None:
    """Add the gradients of a batch's loss, by its share of the images of the whole update."""
    setup.scaler.scale(loss * share).backward()


@torch.no_grad()
def _validate(
    setup: TrainingContext, current: PhaseContext, course: TrainingProgress
) -> dict[str, float]:
    """Return cross-entropy and accuracy on the validation images, in evaluation mode."""
    modes = {module: module.training for module in setup.network.modules()}
    setup.network.eval()
    mine = share(range(len(setup.val_set.labels)))
    in_order = _batches(mine, setup.options.batch_size)
    batches = current.activations.load(setup.val_set.take(in_order))
    loss, correct = 0.0, 0
    for positions, crossing in zip(in_order, batches, strict=True):
        truth = setup.val_set.labels[positions]
        parts = count_parts(setup.network, len(truth), course.micro_batch)
        columns = [tensor.tensor_split(parts) for tensor in crossing]
        answer = partial(_answer, setup, current.line.above_eval)
        outputs = torch.cat([answer(*some) for some in zip(*columns, strict=True)])
        # log_softmax leaves logarithms of probabilities as they are, so this serves for both.
        loss += nn.functional.cross_entropy(outputs, truth, reduction="sum").item()
        correct += int((outputs.argmax(dim=1) == truth).sum())
    for module, training in modes.items():  # train() would thaw the frozen part's batch norm
        module.training = training
    seen, device = len(setup.val_set.labels), setup.accelerator.device
    whole_loss, whole_correct = add_up(loss, correct, device=device)
    return {"val_loss": whole_loss / seen, "val_accuracy": whole_correct / seen}


def _check_losses(
    total: float,
    losses: Tensor,
    order: Sequence[Positions],
    setup: TrainingContext,
    current: PhaseContext,
    course: TrainingProgress,
) -> None:
    """Raise a TrainingError that names the first batch whose loss is not finite, if there is one.

    The losses (batches,) are those of the batches so far, and 0 from there on; `total` is a sum of
    them that is at hand, where they may still be on a device.
    """
    if math.isfinite(total):
        return
    step = int(losses.isfinite().int().argmin())
    paths = [image.path for image in setup.train_set.take([order[step]])[0]]
    more = (
        f" and {len(paths) - MAX_NAMES_IN_MESSAGE} more"
        if len(paths) > MAX_NAMES_IN_MESSAGE
        else ""
    )
    batch = f"{step + 1} of {len(order)} ({', '.join(paths[:MAX_NAMES_IN_MESSAGE])}{more})"
    value = losses[step].item()
    _check_finite(value, f"The loss is {value} in batch {batch} of", course, current)


def _check_finite(loss: float, what: str, course: TrainingProgress, current: PhaseContext) -> None:
    if not math.isfinite(loss):
        rate = current.optimizer.param_groups[0]["lr"]
        raise TrainingError(
            f"{what} epoch {len(course.history) + 1} (phase {course.phase}), at a learning rate of"
            f" {rate:g}. Lower training.lr or set training.clip_norm, for instance 1; where it is"
            " always the same batch, look at its images. What was saved of earlier epochs is kept."
        )


def score(metrics: dict[str, float], monitor: str) -> tuple[float, float]:
    """Return what is larger for a better epoch; equal accuracies are told apart by the loss."""
    loss = -metrics["val_loss"]
    return (loss, loss) if monitor == "val_loss" else (metrics["val_accuracy"], loss)


def _average(network: nn.Module, options: TrainingOptions) -> WeightEma | None:
    """Return the moving average of all that a phase changes, statistics included, if wanted."""
    if options.ema_decay is None:
        return None
    state, frozen = network.state_dict(), frozen_tensors(network)
    tensors = [t for name, t in state.items() if name not in frozen and t.is_floating_point()]
    return WeightEma(tensors, options.ema_decay)


def _key(initial: State, phases: Sequence[Phase], setup: TrainingContext) -> str:
    """Return what tells a training from any that would end otherwise, as hexadecimal digits."""
    sets = (setup.train_set, setup.val_set)
    whole = {
        "weights": hash_tensors(initial),
        "structure": repr(setup.network),
        "phases": [phase.model_dump(mode="json") for phase in phases],
        "images": [images.digest() for images in sets],
        "preprocessing": setup.transforms.preprocessing.model_dump(mode="json"),
        "augmentation": setup.transforms.options.model_dump(mode="json"),
        "views_seed": setup.transforms.seed,
        "options": setup.options.model_dump(mode="json", exclude={"resume", "num_workers"}),
        "device": str(setup.accelerator.device),
        "precision": str(compute_dtype(setup.accelerator)),
        "torch": torch.__version__,
        "loss": type(setup.loss_function).__name__,
        "seed": setup.seed,
        "views": setup.views,
        "mix": repr(setup.mix),
        "workers": [workers(), setup.sync_batch_norm],
    }
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()[:32]


def _state(
    setup: TrainingContext, current: PhaseContext, course: TrainingProgress
) -> dict[str, Any]:
    """Return after the end of an epoch all that it takes to go on later."""
    return {
        "course": vars(course),
        "tensors": _tensors(setup.network, course.changed),
        "optimizer": current.optimizer.state_dict(),
        "schedule": current.schedule.state_dict(),
        "average": (current.average.averages, current.average.updates) if current.average else None,
        "orders": setup.orders.get_state(),
        "cpu": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
        "scaler": setup.scaler.state_dict(),
    }


def _restore(saved: dict[str, Any], setup: TrainingContext, current: PhaseContext) -> None:
    """Bring optimizer, schedule, average and all generators to a saved state."""
    current.optimizer.load_state_dict(saved["optimizer"])
    current.schedule.load_state_dict(saved["schedule"])
    if current.average:
        averages, current.average.updates = saved["average"]
        for mine, theirs in zip(current.average.averages, averages, strict=True):
            mine.copy_(theirs)
    setup.orders.set_state(saved["orders"])
    torch.set_rng_state(saved["cpu"])
    for idx, state in enumerate(saved["cuda"]):
        torch.cuda.set_rng_state(state, idx)
    if saved.get("mps") is not None:
        torch.mps.set_rng_state(saved["mps"])
    if saved.get("scaler"):  # of fp16 alone
        setup.scaler.load_state_dict(saved["scaler"])


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _tensors(network: nn.Module, names: Sequence[str]) -> State:
    """Return copies of some of the state, on the CPU."""
    state = network.state_dict()
    return {name: _copy(state[name]) for name in names}


def _batches(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def progress_bar(what: str) -> Progress:
    """Return a bar whose tasks have the fields epoch and figures, both text."""
    return Progress(
        TextColumn(what + " {task.fields[epoch]}"),
        BarColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
        console=get_console(),  # Kedro's logging writes to the same one, above the bar
        transient=True,
    )


def _epoch_line(row: dict[str, Any]) -> str:
    return (
        f"epoch {row['epoch']} (phase {row['phase']}): train loss {row['train_loss']:.3f}"
        f" accuracy {row['train_accuracy']:.3f}, val loss {row['val_loss']:.3f}"
        f" accuracy {row['val_accuracy']:.3f}, {row['images_per_second']:.0f} images/s"
    )
