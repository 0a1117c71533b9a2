"""Train a network phase by phase: the loop stands here in the order in which it happens."""

from __future__ import annotations

import copy
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
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
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from thawline.errors import ParameterError, TrainingError
from thawline.freezing import (
    check_frozen,
    freeze_layers,
    frozen_tensors,
    hash_tensors,
    parameter_groups,
)
from thawline.images import read_image
from thawline.options import Phase, TrainingOptions
from thawline.transforms import Transforms

logger = logging.getLogger(__name__)

MOST_WORKERS = 8

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


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Images of a split as (normalised tensor (3, size, size), class index).

    It is indexed by a position, or by a position and the seed of the random view to take.
    """

    def __init__(self, paths: Sequence[str], labels: Sequence[int], transform: v2.Compose) -> None:
        """Keep what is needed to read the images; none is read yet."""
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int]:
        """Return one image as the network sees it, and its class index."""
        idx, seed = key if isinstance(key, tuple) else (key, None)
        image = read_image(self.paths[idx])
        if seed is None:
            return self.transform(image), self.labels[idx]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.transform(image), self.labels[idx]


class ViewSampler(Sampler[tuple[int, int]]):
    """A new order of the images in every epoch, and with each its view's seed.

    The seed belongs to the image and the epoch, not to the process that decodes it, so the number
    of workers does not change what the network sees.
    """

    def __init__(self, length: int, seed: int) -> None:
        """Start the sequence of epochs that `seed` stands for."""
        self.length = length
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        """Return the number of images."""
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yield position and view seed of every image once."""
        order = torch.randperm(self.length, generator=self.generator)
        seeds = torch.randint(2**62, (self.length,), generator=self.generator)
        return iter(list(zip(order.tolist(), seeds.tolist(), strict=True)))


def train(
    network: nn.Module,
    phases: Sequence[Phase],
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    seed: int,
    log_probabilities: bool = False,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train `network` in place, phase after phase, and return its best and its last state.

    Args:
        network: yields logits, or with `log_probabilities` logarithms of probabilities (N, C).
        phases: what is trainable, for how long and how fast.
        splits: the table of `split_dataset`.
        transforms: for the training and the validation images.
        options: everything else about training.
        seed: of order, augmentation and dropout; on one CPU the same seed gives the same bits.
        log_probabilities: train by negative log likelihood instead of cross-entropy.
        on_epoch: called after every epoch with its metrics and its number, from 1.

    Raises:
        ParameterError: when the device is not there or a name matches no stage.
        TrainingError: when the loss is no longer finite, or a frozen tensor changed.
    """
    set_seed(seed)
    accelerator = make_accelerator(options)
    train_loader = make_loader(splits, "train", transforms.train, options.batch_size, options, seed)
    val_loader = make_loader(splits, "val", transforms.evaluation, options.batch_size, options)
    train_loader, val_loader = accelerator.prepare(train_loader, val_loader)
    loss_function = make_loss(splits, options, log_probabilities).to(accelerator.device)
    network.to(accelerator.device).to(memory_format=torch.channels_last)
    logger.info("Training on %s in %s", accelerator.device, accelerator.mixed_precision)

    best: State = {}
    best_score, best_epoch = (-math.inf, -math.inf), 0
    history: list[dict[str, Any]] = []
    contract: list[dict[str, Any]] = []
    steps = len(train_loader) * sum(phase.epochs for phase in phases)
    with _progress_bar() as bar:
        task = bar.add_task("", total=steps, epoch="", figures="")
        for phase_number, phase in enumerate(phases, start=1):
            freeze_layers(network, phase)
            sha256_before = hash_tensors(frozen_tensors(network))
            optimizer = make_optimizer(network, phase, options)
            updates = math.ceil(len(train_loader) / options.accumulate)
            schedule = LambdaLR(optimizer, lambda step: lr_factor(step, phase, updates, options))  # noqa: B023
            optimizer, schedule = accelerator.prepare(optimizer, schedule)
            since_best = 0
            for _ in range(phase.epochs):
                epoch = len(history) + 1
                bar.update(task, epoch=f"{epoch}/{sum(phase.epochs for phase in phases)}")
                lr = optimizer.param_groups[0]["lr"]
                metrics = _train_epoch(
                    network, train_loader, loss_function, optimizer, schedule, accelerator,
                    options, lambda **fields: bar.update(task, **fields),
                )  # fmt: skip
                metrics |= _validate(network, val_loader, accelerator)
                for name in ("train_loss", "val_loss"):
                    if not math.isfinite(metrics[name]):
                        raise TrainingError(
                            f"{name} is {metrics[name]} in epoch {epoch} at a learning rate of"
                            f" {lr:g}. Lower training.lr or set training.clip_norm, for instance 1."
                        )
                history.append({"epoch": epoch, "phase": phase_number, **metrics, "lr": lr})
                logger.info(_epoch_line(history[-1]))
                if on_epoch:
                    on_epoch(history[-1], epoch)
                score = _score(metrics, options.monitor)
                since_best += 1
                if score > best_score:
                    best, best_score, best_epoch, since_best = _snapshot(network), score, epoch, 0
                if options.patience and since_best >= options.patience:
                    logger.info("Phase %d stops: no better epoch in %d", phase_number, since_best)
                    break
            contract.append(check_frozen(network, sha256_before, phase_number))
    network.eval()
    return TrainingResult(best, _snapshot(network), best_epoch, pd.DataFrame(history), contract)


def make_accelerator(options: TrainingOptions) -> Accelerator:
    """Return accelerate's handle on device, precision and accumulation.

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
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        gradient_accumulation_steps=options.accumulate,
    )


def make_loader(
    splits: pd.DataFrame,
    split: str,
    transform: v2.Compose,
    batch_size: int,
    options: TrainingOptions,
    seed: int | None = None,
) -> DataLoader[Any]:
    """Return batches of one split: images (N, 3, size, size) float32, class indices (N,) int64.

    Args:
        splits: the table of `split_dataset`.
        split: train, val or test.
        transform: from an RGB image to a tensor.
        batch_size: images a batch.
        options: `workers` is used.
        seed: shuffles, and takes a random view of each image; without it, neither.
    """
    rows = splits[splits["split"] == split]
    dataset = ImageDataset(rows["path"].tolist(), rows["class_index"].tolist(), transform)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    workers = min(cores or 1, MOST_WORKERS) if options.workers is None else options.workers
    return DataLoader(
        dataset,
        batch_size,
        sampler=None if seed is None else ViewSampler(len(dataset), seed),
        # Batch norm cannot train on a single image; the next epoch leaves out another one.
        drop_last=seed is not None and len(dataset) % batch_size == 1 < len(dataset),
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


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
    network: nn.Module,
    loader: DataLoader[Any],
    loss_function: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: LambdaLR,
    accelerator: Accelerator,
    options: TrainingOptions,
    update_bar: Callable[..., None],
) -> dict[str, float]:
    """Return the mean loss, the accuracy and the speed of one pass over the training images."""
    loss_sum = torch.zeros((), device=accelerator.device)
    correct = torch.zeros((), device=accelerator.device)
    seen, start = 0, time.perf_counter()
    for step, (images, labels) in enumerate(loader):
        with accelerator.accumulate(network):
            with accelerator.autocast():
                outputs = network(images.contiguous(memory_format=torch.channels_last)).float()
                loss = loss_function(outputs, labels)
            accelerator.backward(loss)
            if options.clip_norm and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(network.parameters(), options.clip_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        loss_sum += loss.detach() * len(labels)
        correct += (outputs.argmax(dim=1) == labels).sum()
        seen += len(labels)
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
    network: nn.Module, loader: DataLoader[Any], accelerator: Accelerator
) -> dict[str, float]:
    """Return cross-entropy and accuracy on the validation images, in evaluation mode."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    loss, correct, seen = 0.0, 0, 0
    for images, labels in loader:
        with accelerator.autocast():
            outputs = network(images.contiguous(memory_format=torch.channels_last)).float()
        # log_softmax leaves logarithms of probabilities as they are, so this serves for both.
        loss += nn.functional.cross_entropy(outputs, labels, reduction="sum").item()
        correct += int((outputs.argmax(dim=1) == labels).sum())
        seen += len(labels)
    for module, training in modes.items():  # train() would thaw the frozen part's batch norm
        module.training = training
    return {"val_loss": loss / seen, "val_accuracy": correct / seen}


def _score(metrics: dict[str, float], monitor: str) -> tuple[float, float]:
    """Return what is larger for a better epoch; equal accuracies are told apart by the loss."""
    loss = -metrics["val_loss"]
    return (loss, loss) if monitor == "val_loss" else (metrics["val_accuracy"], loss)


def _snapshot(network: nn.Module) -> State:
    state = {name: tensor.detach().cpu() for name, tensor in network.state_dict().items()}
    return copy.deepcopy(state)


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
