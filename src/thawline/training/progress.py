"""Follow a training: its metrics, its history, its best epoch and its progress bar."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich import get_console
from rich.progress import Progress, TextColumn
from torch import Tensor, nn

from thawline.data.decoding import shows_bars
from thawline.errors import TrainingError, summarize_names
from thawline.networks.stages import HEAD, find_stages
from thawline.options import Phase, TrainingOptions
from thawline.thaw.freezing import frozen_tensors, hash_tensors
from thawline.thaw.image_set import ImageSet
from thawline.training.data_parallel import all_reduce_sum
from thawline.training.setup import PhaseContext

logger = logging.getLogger(__name__)

COLUMNS = [  # of the history, with lr/STAGE
    "epoch", "phase", "train_loss", "train_accuracy", "images_per_second", "val_loss",
    "val_accuracy", "seconds", "thaw_line", "trainable_parameters", "lr",
]  # fmt: skip
MAX_FALL = 0.05  # of the accuracies where a phase begins
READ_EVERY = 10  # steps, where reading metrics means waiting for the device

OnEpoch = Callable[[dict[str, Any], int], None]
State = dict[str, Tensor]


class TrainingResult(NamedTuple):
    """What training leaves behind, on the CPU."""

    best: State  # of the best epoch by `training.monitor`
    last: State  # after the last epoch
    best_epoch: int  # from 1; 0 if no phase has an epoch
    history: pd.DataFrame  # one row per epoch: `COLUMNS`, and lr/STAGE of every trained stage
    freeze_contract: list[dict[str, Any]]  # per phase: what was frozen, its SHA-256 before, after
    linear_head: dict[str, list[Any]]  # of a closed form: path of C, contributions, losses
    # `best`, or `last` if that was before layers were thawed; and the best one before
    wise_ft_ends: tuple[State, State] | None
    wise_ft: Mapping[str, float] = {}  # wise_ft_alpha and best_val_accuracy, if `best` is averaged

    def report(self, on_epoch: OnEpoch) -> None:
        """Give `on_epoch` every row of the history, after the training."""
        for row in self.history.to_dict("records"):
            on_epoch({str(name): value for name, value in row.items()}, row["epoch"])


@dataclass
class TrainingProgress:
    """How far training has come: plain values and tensors, saved to resume it."""

    micro_batch: int  # images per forward pass; less than a batch once memory was short
    phase: int = 0  # from 1
    sha256_before: str = ""  # of what that phase freezes
    changed: list[str] = field(default_factory=list)  # tensors that may have changed so far
    history: list[dict[str, Any]] = field(default_factory=list)
    contract: list[dict[str, Any]] = field(default_factory=list)
    best: State = field(default_factory=dict)  # the changed tensors in the best epoch
    best_epoch: int = 0  # 0 before the first
    linear_head: dict[str, list[Any]] = field(default_factory=dict)
    head: State = field(default_factory=dict)  # `best` before layers were thawed

    @property
    def epoch(self) -> int:
        """The number of the current epoch, from 1."""
        return len(self.history) + 1

    def begin_phase(self, phase: int, network: nn.Module) -> None:
        """Note the beginning of a phase, for which the network is frozen already."""
        if phase == self.phase:  # it is resumed
            return
        trained = {name for name, _ in network.named_parameters()}.intersection(self.changed)
        if trained <= {*find_stages(network)[HEAD].parameters}:
            self.head = self.best
        frozen = frozen_tensors(network)
        self.phase, self.sha256_before = phase, hash_tensors(frozen)
        known = {*frozen, *self.changed}
        self.changed += [name for name in network.state_dict() if name not in known]

    def phase_has_ended(self, phase: Phase, options: TrainingOptions) -> bool:
        """Return whether the phase has had its epochs, or stops early."""
        epochs = sum(row["phase"] == self.phase for row in self.history)
        patience = phase.patience or options.patience
        if patience and min(epochs, len(self.history) - self.best_epoch) >= patience:
            logger.info("Phase %d: early stop, no improvement in %d epochs", self.phase, patience)
            return True
        return epochs >= phase.epochs

    def record(self, row: dict[str, Any], network: nn.Module, monitor: str) -> None:
        """Add an epoch to the history, and keep the weights of the network if it is the best."""
        self._warn_of_fall(row)
        self.history.append({"epoch": self.epoch, "phase": self.phase, **row})
        best = max(self.history, key=partial(score, monitor=monitor))  # the first of equals
        if best is self.history[-1]:
            self.best, self.best_epoch = copy_tensors(network, self.changed), best["epoch"]
        logger.info(
            "Epoch %(epoch)d: loss %(train_loss).3f, accuracy %(train_accuracy).3f; val loss"
            " %(val_loss).3f, accuracy %(val_accuracy).3f",
            self.history[-1],
        )

    def _warn_of_fall(self, row: dict[str, Any]) -> None:
        """Warn if a phase begins by losing what the phase before it had learned."""
        before = self.history[-1] if self.history else {"phase": self.phase}
        accuracies = ("train_accuracy", "val_accuracy")
        if before["phase"] == self.phase or any(before[a] - row[a] < MAX_FALL for a in accuracies):
            return
        fallen = [f"{name} fell from {before[name]:.3f} to {row[name]:.3f}" for name in accuracies]
        logger.warning(
            "Phase %d: %s as layers were thawed. If they do not recover, lower the phase's lr, or"
            " set its batch_norm to eval",
            self.phase,
            " and ".join(fallen),
        )

    def result(self, initial: State, network: nn.Module) -> TrainingResult:
        """Return the result of the training, given the state that it began with."""
        best, last = initial | self.best, initial | copy_tensors(network, self.changed)
        tuned = best if len(self.best) > len(self.head) else last
        return TrainingResult(
            best,
            last,
            self.best_epoch,
            pd.DataFrame(self.history or None, columns=None if self.history else COLUMNS),
            self.contract,
            self.linear_head,
            (tuned, initial | self.head) if len(self.changed) > len(self.head) > 0 else None,
        )


def score(metrics: dict[str, float], monitor: str) -> tuple[float, float]:
    """Return a score that is larger for a better epoch; loss breaks ties of accuracy."""
    loss = -metrics["val_loss"]
    return (loss, loss) if monitor == "val_loss" else (metrics["val_accuracy"], loss)


def copy_tensors(network: nn.Module, names: Sequence[str] | None = None) -> State:
    """Return copies on the CPU of the network's state, or of the tensors named."""
    state = network.state_dict()
    return {n: state[n].detach().cpu().clone() for n in (state if names is None else names)}


class RunningMetrics:
    """Mean loss and accuracy of an epoch, accumulated on the device."""

    def __init__(
        self,
        images: ImageSet,
        batches: Sequence[np.ndarray],
        current: PhaseContext,
        progress: TrainingProgress,
    ) -> None:
        """Take the images, their positions in each step, and the phase and epoch they are of."""
        self._images, self._batches, device = images, batches, images.labels.device
        self._current, self._progress = current, progress
        self._losses = torch.zeros(len(batches), device=device)  # one tensor: fragments no memory
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._loss_sum = torch.zeros((), dtype=dtype, device=device)
        self._correct = torch.zeros((), dtype=torch.int64, device=device)
        self._weight, self._count, self._start = 0.0, 0, time.perf_counter()
        self.steps = 0  # added so far
        self.figures = ""  # loss, accuracy and images/s, as last read

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, weight: float) -> None:
        """Add a step: its mean loss with its weight, outputs (N, C) and class indices (N,).

        Raises:
            TrainingError: if the loss of this or an earlier step is not finite.
        """
        self._losses[self.steps] = loss
        self._loss_sum += loss * weight
        self._correct += (logits.argmax(dim=1) == labels).sum()
        self._weight += weight
        self._count += len(labels)
        self.steps += 1
        if loss.device.type == "cpu" or self.steps % READ_EVERY == 0:
            loss_mean, accuracy, speed = self._rates(*self._read())
            self.figures = f"loss {loss_mean:.3f} accuracy {accuracy:.3f} {speed:.0f} images/s"

    def compute(self) -> tuple[float, float, float]:
        """Return mean loss, accuracy and images per second of all workers.

        Raises:
            TrainingError: if the loss of a step is not finite.
        """
        return self._rates(*all_reduce_sum(*self._read(), device=self._losses.device))

    def _rates(
        self, loss: float, weight: float, correct: float, count: float
    ) -> tuple[float, float, float]:
        return loss / weight, correct / count, count / (time.perf_counter() - self._start)

    def _read(self) -> tuple[float, float, float, float]:
        """Wait for the device; return the sums of losses, weights, right answers and images."""
        loss = self._loss_sum.item()
        if not math.isfinite(loss):
            step = int(self._losses.isfinite().int().argmin())
            (images,) = self._images.take([self._batches[step]])
            raise TrainingError(
                f"The loss is {self._losses[step].item()} in batch {step + 1} of"
                f" {len(self._batches)} of epoch {self._progress.epoch} (phase"
                f" {self._progress.phase}), at a learning rate of"
                f" {self._current.optimizer.param_groups[0]['lr']:g}. Lower training.lr, or set"
                " training.clip_norm, for instance to 1. If it is always the same batch, look at"
                f" its images: {summarize_names([image.path for image in images])}. The state of"
                " earlier epochs is kept."
            )
        return loss, self._weight, self._correct.item(), self._count


def log_step(epoch: int, step: int, loss: Tensor, weight: float) -> None:
    """Log the mean loss of a step over all workers, if level DEBUG is on."""
    if logger.isEnabledFor(logging.DEBUG):
        total, weights = all_reduce_sum(loss.item() * weight, weight, device=loss.device)
        logger.debug("Epoch %d, step %d: loss %.6f", epoch, step, total / weights)


@contextmanager
def progress_bar(what: str, total: float) -> Iterator[Callable[..., None]]:
    """Show a bar and yield `Progress.update` of its task, which has a field of text, `figures`."""
    columns = (*Progress.get_default_columns(), TextColumn("{task.fields[figures]}"))
    console = get_console()  # Kedro's logging writes to it, too, above the bar
    with Progress(*columns, console=console, transient=True, disable=not shows_bars()) as bar:
        yield partial(bar.update, bar.add_task(what, total=total, figures=""))
