"""Save the state of a training, so that an interrupted one resumes to the bit."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from thawline.data.atomic_write import write_atomic
from thawline.options import Phase
from thawline.thaw.device import compute_dtype
from thawline.thaw.freezing import hash_tensors
from thawline.training.data_parallel import rank, world_size
from thawline.training.progress import TrainingProgress, copy_tensors
from thawline.training.setup import PhaseContext, TrainingContext

logger = logging.getLogger(__name__)

MAX_SAVING_TIME = 0.02  # of the time of training


class TrainingCheckpoints:
    """A folder with the two last states of each training, by a key of what it depends on."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which need not exist."""
        self.folder = folder
        self._keys: set[str] = set()
        self._not_before = 0.0

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the last readable state under a key, or None if there is none."""
        self._keys.add(key)
        for path in self._paths(key):
            if not path.is_file():
                continue
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s is damaged (%s): using the previous state", path, error)
        others = len({path.name.partition(".")[0] for path in self.folder.glob("*.pt")} - {key})
        logger.warning(
            "training.resume: found no interrupted training with these data, weights and"
            " parameters%s. Starting from the beginning",
            f" ({others} with others, see {self.folder})" if others else "",
        )
        return None

    def save(self, key: str, state: Callable[[], dict[str, Any]]) -> None:
        """Save plain values and tensors under a key, unless the last save was a moment ago.

        Saving takes at most `MAX_SAVING_TIME` of the time. A killed process loses at most an epoch,
        or 1 / `MAX_SAVING_TIME` times the duration of a save.
        """
        start = time.perf_counter()
        if start < self._not_before:
            return
        self._keys.add(key)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            newest, previous = self._paths(key)
            write_atomic(newest, lambda path: torch.save(state(), path), previous)
        except (OSError, RuntimeError) as error:  # no reason for training to end
            logger.warning("Cannot save the state of training (%s)", error)
        end = time.perf_counter()
        self._not_before = end + (end - start) / MAX_SAVING_TIME

    def adopt(self, others: TrainingCheckpoints) -> None:
        """Let `forget` also remove the states of another object on the same folder."""
        self._keys |= others._keys

    def forget(self) -> None:
        """Remove the states that were loaded or saved through this object."""
        for key in self._keys:
            for path in self._paths(key):
                path.unlink(missing_ok=True)
        self._keys.clear()

    def _paths(self, key: str) -> tuple[Path, Path]:
        """Return the files of the newest state and of the previous one."""
        return self.folder / f"{key}.pt", self.folder / f"{key}.previous.pt"


class SavedTraining:
    """The checkpoints of one training: resumed from, and written after its epochs."""

    def __init__(
        self,
        checkpoints: TrainingCheckpoints | None,
        run: TrainingContext,
        phases: Sequence[Phase],
        initial: dict[str, Tensor],
    ) -> None:
        """Look for a state, if `training.resume` is on; without checkpoints, do nothing."""
        self._checkpoints, self._run = checkpoints, run
        self._state: dict[str, Any] | None = None
        if checkpoints:
            self._key = training_key(run, phases, initial)
            self._state = checkpoints.load(self._key) if run.options.resume else None

    def resume(self) -> TrainingProgress:
        """Return how far the training came, and load the weights that it had then."""
        if not self._state:
            return TrainingProgress(micro_batch=self._run.options.batch_size)
        progress = TrainingProgress(**self._state["progress"])
        self._run.network.load_state_dict(self._state["tensors"], strict=False)
        logger.info("Resuming after epoch %d", len(progress.history))
        return progress

    def restore(self, current: PhaseContext) -> None:
        """Put the state of the interrupted phase back; later phases begin as they are."""
        if self._state:
            restore_state(self._state, self._run, current)
            self._state = None

    def save(self, current: PhaseContext, progress: TrainingProgress) -> None:
        """Save the state after an epoch, in the first worker."""

        def state() -> dict[str, Any]:
            saved = capture_state(self._run, current, progress.changed)
            return saved | {"progress": vars(progress)}

        if self._checkpoints and rank() == 0:
            self._checkpoints.save(self._key, state)


def training_key(run: TrainingContext, phases: Sequence[Phase], initial: dict[str, Tensor]) -> str:
    """Return 32 hexadecimal digits that differ between trainings with different outcomes.

    Args:
        run: the training.
        phases: what is trainable, for how many epochs, at which learning rates.
        initial: state dict that the training begins with.
    """
    everything = {
        "weights": hash_tensors(initial),
        "structure": repr(run.network),
        "phases": [phase.model_dump(mode="json") for phase in phases],
        "images": [images.digest() for images in (run.train_set, run.val_set)],
        "preprocessing": run.transforms.preprocessing.model_dump(mode="json"),
        "augmentation": run.transforms.options.model_dump(mode="json"),
        "views_seed": run.transforms.seed,
        "options": run.options.model_dump(mode="json", exclude={"resume", "num_workers"}),
        "device": str(run.accelerator.device),
        "precision": str(compute_dtype(run.accelerator)),
        "torch": torch.__version__,
        "loss": type(run.loss_function).__name__,
        "seed": run.seed,
        "views": run.views,
        "mix": repr(run.mix),
        "workers": [world_size(), run.sync_batch_norm],
    }
    return hashlib.sha256(json.dumps(everything).encode()).hexdigest()[:32]


def capture_state(
    run: TrainingContext, current: PhaseContext, changed: Sequence[str]
) -> dict[str, Any]:
    """Return all that an epoch changes: tensors, optimizer, schedule, average, generators."""
    return {
        "tensors": copy_tensors(run.network, changed),
        "optimizer": current.optimizer.state_dict(),
        "schedule": current.schedule.state_dict(),
        "ema": current.ema.module.state_dict() if current.ema else None,
        "scaler": run.scaler.state_dict(),
        "shuffle_rng": run.shuffle_rng.get_state(),
        "cpu_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "mps_rng": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }


def restore_state(state: dict[str, Any], run: TrainingContext, current: PhaseContext) -> None:
    """Put everything back that `capture_state` returned."""
    run.network.load_state_dict(state["tensors"], strict=False)
    current.optimizer.load_state_dict(state["optimizer"])
    current.optimizer.zero_grad()
    current.schedule.load_state_dict(state["schedule"])
    if current.ema:
        current.ema.module.load_state_dict(state["ema"])
    if state["scaler"]:  # of fp16 alone
        run.scaler.load_state_dict(state["scaler"])
    run.shuffle_rng.set_state(state["shuffle_rng"])
    torch.set_rng_state(state["cpu_rng"])
    for idx, cuda_rng in enumerate(state["cuda_rng"]):
        torch.cuda.set_rng_state(cuda_rng, idx)
    if state["mps_rng"] is not None:
        torch.mps.set_rng_state(state["mps_rng"])
