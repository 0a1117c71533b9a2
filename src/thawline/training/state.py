"""Save the state of a training, to resume it to the bit or to add epochs to its last phase."""

import hashlib
import json
import logging
import pickle
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate.utils import send_to_device
from pydantic import BaseModel
from torch import Tensor

from thawline.data.atomic_write import write_atomic
from thawline.options import Phase
from thawline.thaw.freezing import hash_tensors
from thawline.training.data_parallel import rank, world_size
from thawline.training.progress import TrainingProgress, copy_tensors
from thawline.training.setup import PhaseContext, TrainingContext

logger = logging.getLogger(__name__)

MAX_SAVING_TIME = 0.02  # of the time of training


class TrainingCheckpoints:
    """A folder of states, by a key of what a training depends on except its last epoch.

    It holds the two last states of every interrupted training, and the last one of every training
    of the run that finished last.
    """

    def __init__(self, folder: Path) -> None:
        """Take the folder, which need not exist."""
        self.folder = folder
        self.keys: list[str] = []
        self._not_before = 0.0
        self._saved_epochs = 0  # of the training that was loaded last

    def load(
        self, run: TrainingContext, phases: Sequence[Phase], initial: dict[str, Tensor]
    ) -> dict[str, Any] | None:
        """Return the last readable state of a training that `training.resume` resumes, or None."""
        self.keys.append(training_key(run, phases, initial))
        self._saved_epochs = 0
        if not run.options.resume:
            return None
        for path in filter(Path.is_file, self._paths(self.keys[-1])):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s is damaged (%s): using the previous state", path, error)
                continue
            history = state["progress"]["history"]
            trained = sum(row["phase"] == len(phases) for row in history)
            if trained <= phases[-1].epochs:
                self._saved_epochs = len(history)
                return state
            logger.warning(
                "training.resume: %s has %d epochs of the last phase, more than the %d to be"
                " trained. Starting from the beginning",
                path,
                trained,
                phases[-1].epochs,
            )
            return None
        others = {path.name.partition(".")[0] for path in self.folder.glob("*.pt")}
        logger.warning(
            "training.resume: found no training to go on with that has these data, weights and"
            " parameters (%d with others in %s). Starting from the beginning",
            len(others - {self.keys[-1]}),
            self.folder,
        )
        return None

    def has(self, run: TrainingContext, phases: Sequence[Phase]) -> bool:
        """Return whether `training.resume` would find a training, which has not begun in `run`."""
        if not run.options.resume:
            return False
        key = training_key(run, phases, copy_tensors(run.network))
        return any(map(Path.is_file, self._paths(key)))

    def save(
        self, state: dict[str, Any], progress: TrainingProgress, is_last: bool = False
    ) -> None:
        """Save the state of the training that was loaded last, unless a save was a moment ago.

        Saving takes at most `MAX_SAVING_TIME` of the time, but for the last state, which is always
        saved. A killed process loses at most an epoch, or 1 / `MAX_SAVING_TIME` times the duration
        of a save.
        """
        start, epochs = time.perf_counter(), len(progress.history)
        if rank() or epochs == self._saved_epochs or (start < self._not_before and not is_last):
            return
        state = state | {"progress": vars(progress)}
        newest, previous, _ = self._paths(self.keys[-1])
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_atomic(newest, lambda path: torch.save(state, path), previous)
            self._saved_epochs = epochs
        except (OSError, RuntimeError) as error:  # no reason for training to end
            logger.warning("Cannot save the state of training (%s)", error)
        end = time.perf_counter()
        self._not_before = end + (end - start) / MAX_SAVING_TIME

    def finish(self) -> None:
        """Keep the last states of trainings that were loaded, and no other finished training's."""
        kept = {self._paths(key)[-1] for key in self.keys}
        for key in self.keys:
            newest, previous, finished = self._paths(key)
            previous.unlink(missing_ok=True)
            if newest.exists():
                newest.replace(finished)
        for path in self.folder.glob("*.finished.pt") if kept else ():
            if path not in kept:
                path.unlink(missing_ok=True)
        self.keys.clear()

    def _paths(self, key: str) -> tuple[Path, Path, Path]:
        """Return the files of a training's newest state, the previous one, and a finished one."""
        newest, previous, finished = f"{key}.pt", f"{key}.previous.pt", f"{key}.finished.pt"
        return self.folder / newest, self.folder / previous, self.folder / finished


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
    """Return 32 hexadecimal digits that differ between trainings with different outcomes.

    The epochs of the last phase are left out, so that a longer training finds a shorter one.
    """
    last = phases[-1].model_dump(exclude={"epochs"})
    everything = [
        hash_tensors(initial),
        repr(run.network),
        [*phases[:-1], last],
        [images.digest() for images in (run.train_set, run.val_set)],
        run.transforms,
        run.parameters.augmentation,
        run.options.model_dump(exclude={"epochs", "resume", "num_workers", "wise_ft"}),
        repr(run.loss_function),
        run.parameters.seed,
        [*map(str, run.accelerator), torch.__version__],
        [world_size(), run.parameters.engine.sync_batch_norm],
    ]
    if run.train_groups is not None:
        groups, _ = pd.factorize(run.train_groups)
        everything.append(hashlib.sha256(groups.tobytes()).hexdigest())
    text = json.dumps(everything, default=BaseModel.model_dump)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def capture_state(
    run: TrainingContext, current: PhaseContext, changed: Sequence[str]
) -> dict[str, Any]:
    """Return a copy on the CPU of all that an epoch changes."""
    tensors = run.network.state_dict()
    state = {
        "tensors": {name: tensors[name] for name in changed},
        "low_rank": current.low_rank.state_dict(),
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
    """Put back what `capture_state` returned, which stays as it is.

    Learning rates are those of the phase as it is now, which may have other epochs.
    """
    state = deepcopy(state)
    run.network.load_state_dict(state["tensors"], strict=False)
    run.network.zero_grad()
    current.low_rank.load_state_dict(state["low_rank"])
    current.optimizer.load_state_dict(state["optimizer"])
    schedule = current.schedule
    schedule.load_state_dict(state["schedule"])
    for number, group in enumerate(current.optimizer.param_groups):
        factor = schedule.lr_lambdas[number](schedule.last_epoch)
        group["lr"] = schedule.base_lrs[number] * factor
    if current.ema:
        current.ema.module.load_state_dict(state["ema"])
    run.scaler.load_state_dict(state["scaler"])
    run.shuffle_rng.set_state(state["shuffle_rng"])
    torch.set_rng_state(state["cpu_rng"])
    torch.cuda.set_rng_state_all(state["cuda_rng"][: torch.cuda.device_count()])  # may be fewer now
    if state["mps_rng"] is not None:
        torch.mps.set_rng_state(state["mps_rng"])
