"""Train a network phase by phase: the loop stands here in the order in which it happens."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from rich import get_console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from thawline.activations import ActivationLoader, ActivationStore, Image, Tensors
from thawline.errors import ParameterError, TrainingError
from thawline.freezing import (
    check_frozen,
    freeze_layers,
    frozen_tensors,
    hash_tensors,
    parameter_groups,
)
from thawline.images import hash_files
from thawline.loading import ViewLoader
from thawline.options import Phase, TrainingOptions
from thawline.thaw_line import ThawLine, split_at_thaw_line
from thawline.transforms import Transforms

logger = logging.getLogger(__name__)

OnEpoch = Callable[[dict[str, float], int], None]
State = dict[str, Tensor]


class TrainingResult(NamedTuple):
    """What training leaves behind.

    Attributes:
        best: state dict of the best epoch by `training.monitor`, on the CPU.
        last: state dict after the last epoch, on the CPU.
        best_epoch: its number, from 1.
        history: a row an epoch: epoch, phase, train and val loss and accuracy, lr, speed.
        freeze_contract: a record a phase: what was frozen, and its SHA-256 before and after.
    """

    best: State
    last: State
    best_epoch: int
    history: pd.DataFrame
    freeze_contract: list[dict[str, Any]]


class ImageSet(NamedTuple):
    """The images of a split, and their class indices (N,) int64 on the training device."""

    images: list[Image]
    labels: Tensor

    def shuffle(self, orders: torch.Generator, batch_size: int) -> list[list[int]]:
        """Return positions in a new order, in batches of more than one image.

        Batch norm cannot train on a single image; the next epoch leaves out another one.
        """
        batches = _batches(torch.randperm(len(self.images), generator=orders).tolist(), batch_size)
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches

    def take(self, batches: Sequence[Sequence[int]], view: int | None = None) -> list[list[Image]]:
        """Return batches of images: their nth random view, or that for evaluation."""
        return [[self.images[idx]._replace(view=view) for idx in batch] for batch in batches]


def train(
    network: nn.Module,
    phases: Sequence[Phase],
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    seed: int,
    views: int | None = None,
    store: ActivationStore | None = None,
    log_probabilities: bool = False,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train `network` in place, phase after phase, and return its best and its last state.

    Args:
        network: yields logits, or with `log_probabilities` logarithms of probabilities (N, C).
        phases: what is trainable, for how long and how fast.
        splits: the table of `split_dataset`.
        transforms: how files become what the network sees.
        options: everything else about training.
        seed: of order, augmentation and dropout; on one CPU the same seed gives the same bits.
        views: random views of each image, taken in turn; None is a new one in every epoch.
        store: keeps what the frozen part yields; None computes it in every epoch.
        log_probabilities: train by negative log likelihood instead of cross-entropy.
        on_epoch: called after every epoch with its metrics and its number, from 1.

    Raises:
        ParameterError: when the device is not there or a name matches no stage.
        TrainingError: when the loss is no longer finite, or a frozen tensor changed.
    """
    set_seed(seed)
    accelerator = make_accelerator(options)
    store = store or ActivationStore(Path(), max_gb=0)
    train_set, val_set = (image_set(splits, name, accelerator.device) for name in ("train", "val"))
    loader = ViewLoader(transforms, options.workers)
    loss_function = make_loss(splits, options, log_probabilities).to(accelerator.device)
    network.to(accelerator.device).to(memory_format=torch.channels_last)
    logger.info("Training on %s in %s", accelerator.device, _dtype(accelerator))

    best: State = {}
    best_score, best_epoch = (-math.inf, -math.inf), 0
    history: list[dict[str, Any]] = []
    contract: list[dict[str, Any]] = []
    orders = torch.Generator().manual_seed(seed)
    in_order = _batches(range(len(val_set.images)), options.batch_size)
    steps = len(train_set.shuffle(torch.Generator(), options.batch_size))
    epochs = sum(phase.epochs for phase in phases)
    with _progress_bar() as bar:
        task = bar.add_task("", total=steps * epochs, epoch="", figures="")
        for phase_number, phase in enumerate(phases, start=1):
            freeze_layers(network, phase)
            frozen = {name: _copy(tensor) for name, tensor in frozen_tensors(network).items()}
            sha256_before = hash_tensors(frozen)
            line = split_at_thaw_line(network, transforms.preprocessing.size)
            activations = ActivationLoader(
                line, transforms, seed, loader, store, accelerator.device, _dtype(accelerator),
                entries=(views or 0) * len(train_set.images) + len(val_set.images),
            )  # fmt: skip
            optimizer = make_optimizer(network, phase, options)
            schedule = make_schedule(optimizer, phase, steps, options)
            since_best = 0
            for _ in range(phase.epochs):
                epoch = len(history) + 1
                bar.update(task, epoch=f"{epoch}/{epochs}")
                lr = optimizer.param_groups[0]["lr"]
                shuffled = train_set.shuffle(orders, options.batch_size)
                view = (epoch - 1) % views if views else epoch - 1
                metrics = _train_epoch(
                    line, activations.load(train_set.take(shuffled, view), keep=views is not None),
                    [train_set.labels[batch] for batch in shuffled], loss_function, optimizer,
                    schedule, accelerator, options, lambda **fields: bar.update(task, **fields),
                )  # fmt: skip
                metrics |= _validate(
                    network, line, activations.load(val_set.take(in_order)),
                    [val_set.labels[batch] for batch in in_order], accelerator,
                )  # fmt: skip
                history.append({"epoch": epoch, "phase": phase_number, **metrics, "lr": lr})
                _check_finite(history[-1])
                logger.info(_epoch_line(history[-1]))
                if on_epoch:
                    on_epoch(history[-1], epoch)
                score = _score(metrics, options.monitor)
                since_best += 1
                if score > best_score:
                    best, best_score = _snapshot(network, frozen), score
                    best_epoch, since_best = epoch, 0
                if options.patience and since_best >= options.patience:
                    logger.info("Phase %d stops: no better epoch in %d", phase_number, since_best)
                    break
            logger.info("Phase %d: %s", phase_number, activations.summary())
            contract.append(check_frozen(network, sha256_before, phase_number))
    network.eval()
    return TrainingResult(
        best, _snapshot(network, frozen), best_epoch, pd.DataFrame(history), contract
    )


def image_set(splits: pd.DataFrame, split: str, device: torch.device) -> ImageSet:
    """Return the images of a split with the hashes that their files have now.

    Raises:
        OSError: when a file cannot be read.
    """
    rows = splits[splits["split"] == split]
    paths = rows["path"].tolist()
    images = [Image(path, sha256) for path, sha256 in zip(paths, hash_files(paths), strict=True)]
    return ImageSet(images, torch.tensor(rows["class_index"].tolist(), device=device))


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """Return accelerate's handle on device and precision.

    `precision: auto` is bf16 where the hardware computes in it natively, else fp32.

    Raises:
        ParameterError: when the device that is asked for is not there.
    """
    available = {
        "auto": True,
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not available[options.device]:
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ParameterError(
            f"training.device: '{options.device}' is not available here (possible: {there})."
        )
    # accelerate keeps its settings for the life of the process; a notebook or a test may train
    # twice with different ones.
    AcceleratorState._reset_state(reset_partial_state=True)
    on_cpu = options.device == "cpu" or (
        options.device == "auto" and not (available["cuda"] or available["mps"])
    )
    if options.precision == "auto":
        native = _computes_bf16_on_cpu() if on_cpu else _computes_bf16_on_cuda()
        precision = "bf16" if native else "no"
    else:
        precision = {"fp32": "no", "bf16": "bf16"}[options.precision]
    return Accelerator(cpu=on_cpu, mixed_precision=precision)


def make_loss(
    splits: pd.DataFrame, options: TrainingOptions, log_probabilities: bool
) -> nn.CrossEntropyLoss | nn.NLLLoss:
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
    network: nn.Module, phase: Phase, options: TrainingOptions
) -> torch.optim.Optimizer:
    """Return an optimizer of exactly the trainable parameters, the head's group first.

    Raises:
        TrainingError: when it would miss a trainable parameter.
    """
    groups = parameter_groups(network, phase)
    held = sum(len(group["params"]) for group in groups)
    if held != sum(p.requires_grad for p in network.parameters()):
        raise TrainingError(f"{held} tensors in the optimizer are not all trainable ones.")
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, weight_decay=options.weight_decay)
    return torch.optim.SGD(groups, momentum=options.momentum, weight_decay=options.weight_decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, phase: Phase, batches: int, options: TrainingOptions
) -> LambdaLR:
    """Return the schedule of a phase with so many batches an epoch, to step after each update."""
    updates = math.ceil(batches / options.accumulate)
    return LambdaLR(optimizer, lambda update: lr_factor(update, phase, updates, options))


def lr_factor(step: int, phase: Phase, updates_per_epoch: int, options: TrainingOptions) -> float:
    """Return what the learning rates are multiplied by at an update, counted from 0 in a phase.

    A linear warm-up, then half a cosine down to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983),
    or a drop every `step_epochs`, or nothing.
    """
    total = phase.epochs * updates_per_epoch
    warmup = int(options.warmup * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return 1.0
    if options.schedule == "step":
        return options.step_factor ** (step // (options.step_epochs * updates_per_epoch))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _train_epoch(
    line: ThawLine,
    batches: Iterable[Tensors],
    labels: Sequence[Tensor],
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    accelerator: Accelerator,
    options: TrainingOptions,
    update_bar: Callable[..., None],
) -> dict[str, float]:
    """Return the mean loss, the accuracy and the speed of one pass over the training images."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    loss_sum = torch.zeros((), device=accelerator.device)
    correct = torch.zeros((), device=accelerator.device)
    seen, start = 0, time.perf_counter()
    for step, (tensors, truth) in enumerate(zip(batches, labels, strict=True), start=1):
        with accelerator.autocast():
            outputs = line.above_in_training(*tensors).float()
            loss = loss_function(outputs, truth)
        (loss / options.accumulate).backward()
        if step % options.accumulate == 0 or step == len(labels):
            if options.clip_norm:
                nn.utils.clip_grad_norm_(trained, options.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss_sum += loss.detach() * len(truth)
        correct += (outputs.argmax(dim=1) == truth).sum()
        seen += len(truth)
        update_bar(advance=1)
        if accelerator.device.type == "cpu" or step % 10 == 0:  # elsewhere reading means waiting
            speed = seen / (time.perf_counter() - start)
            loss_mean, accuracy = loss_sum.item() / seen, correct.item() / seen
            figures = f"loss {loss_mean:.3f} accuracy {accuracy:.3f} {speed:.0f} images/s"
            update_bar(figures=figures)
    return {
        "train_loss": loss_sum.item() / seen,
        "train_accuracy": correct.item() / seen,
        "images_per_second": seen / (time.perf_counter() - start),
    }


@torch.no_grad()
def _validate(
    network: nn.Module,
    line: ThawLine,
    batches: Iterable[Tensors],
    labels: Sequence[Tensor],
    accelerator: Accelerator,
) -> dict[str, float]:
    """Return cross-entropy and accuracy on the validation images, in evaluation mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    loss, correct = 0.0, 0
    for tensors, truth in zip(batches, labels, strict=True):
        with accelerator.autocast():
            outputs = line.above_in_evaluation(*tensors).float()
        # log_softmax leaves logarithms of probabilities as they are, so this serves for both.
        loss += nn.functional.cross_entropy(outputs, truth, reduction="sum").item()
        correct += int((outputs.argmax(dim=1) == truth).sum())
    for module, training in modes.items():  # train() would thaw the frozen part's batch norm
        module.training = training
    seen = sum(map(len, labels))
    return {"val_loss": loss / seen, "val_accuracy": correct / seen}


def _check_finite(row: dict[str, Any]) -> None:
    for name in ("train_loss", "val_loss"):
        if not math.isfinite(row[name]):
            raise TrainingError(
                f"{name} is {row[name]} in epoch {row['epoch']} at a learning rate of"
                f" {row['lr']:g}. Lower training.lr or set training.clip_norm, for instance 1."
            )


def _score(metrics: dict[str, float], monitor: str) -> tuple[float, float]:
    """Return what is larger for a better epoch; equal accuracies are told apart by the loss."""
    loss = -metrics["val_loss"]
    return (loss, loss) if monitor == "val_loss" else (metrics["val_accuracy"], loss)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().clone()


def _snapshot(network: nn.Module, frozen: State) -> State:
    """Return the state on the CPU; what is frozen needs no copy of its own."""
    return {n: frozen[n] if n in frozen else _copy(t) for n, t in network.state_dict().items()}


def _batches(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _dtype(accelerator: Accelerator) -> torch.dtype:
    return torch.bfloat16 if accelerator.mixed_precision == "bf16" else torch.float32


def _computes_bf16_on_cpu() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def _computes_bf16_on_cuda() -> bool:
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


def _progress_bar() -> Progress:
    return Progress(
        TextColumn("Training, epoch {task.fields[epoch]}"),
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
