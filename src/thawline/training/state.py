"""Save the state of a training, so that an interrupted one resumes to the bit."""

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from pydantic import BaseModel
from torch import Tensor

from thawline.data.atomic_write import write_atomic
from thawline.options import Phase
from thawline.thaw.freezing import hash_tensors
from thawline.training.data_parallel import rank, world_size
from thawline.training.progress import TrainingProgress
from thawline.training.setup import PhaseContext, TrainingContext

logger = logging.getLogger(__name__)

MAX_SAVING_TIME = 0.02  # of the time of training


class TrainingCheckpoints:
    """A folder with the two last states of each training, by a key of what it depends on."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which need not exist."""
        self.folder = folder
        self.keys: list[str] = []
        self._not_before = 0.0

    def load(
        self, run: TrainingContext, phases: Sequence[Phase], initial: dict[str, Tensor]
    ) -> dict[str, Any] | None:
        """Return the last readable state of a training that `training.resume` resumes, or None."""
        self.keys.append(training_key(run, phases, initial))
        if not run.options.resume:
            return None
        for path in filter(Path.is_file, self._paths(self.keys[-1])):
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s is damaged (%s): using the previous state", path, error)
        others = {path.name.partition(".")[0] for path in self.folder.glob("*.pt")}
        logger.warning(
            "training.resume: found no interrupted training with these data, weights and"
            " parameters (%d with others in %s). Starting from the beginning",
            len(others - {self.keys[-1]}),
            self.folder,
        )
        return None

    def save(self, state: dict[str, Any], progress: TrainingProgress) -> None:
        """Save the state of the training that was loaded last, unless a save was a moment ago.

        Saving takes at most `MAX_SAVING_TIME` of the time. A killed process loses at most an epoch,
        or 1 / `MAX_SAVING_TIME` times the duration of a save.
        """
        start = time.perf_counter()
        if rank() or start < self._not_before:
            return
        state = state | {"progress": vars(progress)}
        newest, previous = self._paths(self.keys[-1])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(newest, lambda path: torch.save(state, path), previous)
        except (OSError, RuntimeError) as error:  # no reason for training to end
            logger.warning("Cannot save the state of training (%s)", error)
        end = time.perf_counter()
        self._not_before = end + (end - start) / MAX_SAVING_TIME

    def forget(self) -> None:
        """Remove the states of trainings that were loaded through this object."""
        for key in self.keys:
            for path in self._paths(key):
                path.unlink(missing_ok=True)
        self.keys.clear()

    def _paths(self, key: str) -> tuple[Path, Path]:
        """Return the files of the newest state of a training and of the previous one."""
        return self.folder / f"{key}.pt", self.folder / f"{key}.previous.pt"


def begin_or_resume(
    checkpoints: TrainingCheckpoints | None,
    run: TrainingContext,
    phases: Sequence[Phase],
    initial: dict[str, Tensor],
) -> tuple[TrainingProgress, dict[str, Any] | None]:
    """Return how far a training has come, and the saved state, whose weights the network has."""
    state = checkpoints.load(run, phases, initial) if checkpoints else None
    if not state:
        return TrainingProgress(micro_batch=run.options.batch_size), None
    progress = TrainingProgress(**state["progress"])
    run.network.load_state_dict(state["tensors"], strict=False)
    logger.info("Resuming after epoch %d", len(progress.history))
    return progress, state


def training_key(run: TrainingContext, phases: Sequence[Phase], initial: dict[str, Tensor]) -> str:
    """Return 32 hexadecimal digits that differ between trainings with different outcomes."""
    everything = [
        hash_tensors(initial),
        repr(run.network),
        phases,
        [images.digest() for images in (run.train_set, run.val_set)],
        run.transforms,
        run.parameters.augmentation,
        run.options.model_dump(exclude={"resume", "num_workers"}),
        repr(run.loss_function),
        run.parameters.seed,
        [*map(str, run.accelerator), torch.__version__],
        [world_size(), run.parameters.engine.sync_batch_norm],
    ]
    text = json.dumps(everything, default=BaseModel.model_dump)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def capture_state(
    run: TrainingContext, current: PhaseContext, changed: Sequence[str]
) -> dict[str, Any]:
    """Return a copy on the CPU of all that an epoch changes."""
    tensors = run.network.state_dict()
    state = {
        "tensors": {name: tensors[name] for name in changed},
        "optimizer": current.optimizer.state_dict(),
        "schedule": current.schedule.state_dict(),
        "ema": current.ema.module.state_dict() if current.ema else None,
        "scaler": run.scaler.state_dict(),
        "shuffle_rng": run.shuffle_rng.get_state(),
        "cpu_rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all(),  # of no device, an empty list
        "mps_rng": torch.mps.get_rng_state() if torch.backends.mps.is_available() else None,
    }
    return deepcopy(send_to_device(state, "cpu"))


def restore_state(state: dict[str, Any], run: TrainingContext, current: PhaseContext) -> None:
    """Put back what `capture_state` returned, which stays as it is."""
    state = deepcopy(state)
    run.network.load_state_dict(state["tensors"], strict=False)
    current.optimizer.load_state_dict(state["optimizer"])
    current.optimizer.zero_grad()
    current.schedule.load_state_dict(state["schedule"])
    if current.ema:
        current.ema.module.load_state_dict(state["ema"])
    run.scaler.load_state_dict(state["scaler"])
    run.shuffle_rng.set_state(state["shuffle_rng"])
    torch.set_rng_state(state["cpu_rng"])
    torch.cuda.set_rng_state_all(state["cuda_rng"])
    if state["mps_rng"] is not None:
        torch.mps.set_rng_state(state["mps_rng"])
