"""Keep the state of a training that has not ended, so that it can go on to the bit."""

from __future__ import annotations

import logging
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from thawline.data.atomic_write import write_atomic

logger = logging.getLogger(__name__)

LARGEST_SHARE = 0.02  # of the time of training that may go into saving


class TrainingCheckpoints:
    """A folder with the two last states of each training, by a key of what it depends on."""

    def __init__(self, folder: Path) -> None:
        """Take the folder, which need not exist."""
        self.folder = folder
        self._keys: set[str] = set()
        self._not_before = 0.0

    def load(self, key: str) -> dict[str, Any] | None:
        """Return the last state under a key that can be read, or None where there is none."""
        self._keys.add(key)
        for path in self._paths(key):
            if not path.is_file():
                continue
            try:
                return torch.load(path, map_location="cpu", weights_only=True)
            except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                logger.warning("%s is damaged (%s); the state before it is taken", path, error)
        others = len({path.name.partition(".")[0] for path in self.folder.glob("*.pt")} - {key})
        logger.warning(
            "training.resume: no training with these data, weights and parameters was"
            " interrupted%s; it starts from the beginning",
            f" ({others} with others were, see {self.folder})" if others else "",
        )
        return None

    def save(self, key: str, state: Callable[[], dict[str, Any]]) -> None:
        """Save plain values and tensors under a key, unless they were saved a moment ago.

        Saving takes at most `LARGEST_SHARE` of the time. So the work that a killed process lost is
        an epoch, or where epochs are short 1 / `LARGEST_SHARE` times what a save takes.
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
            logger.warning("The state of training cannot be saved (%s)", error)
        end = time.perf_counter()
        self._not_before = end + (end - start) / LARGEST_SHARE

    def adopt(self, others: TrainingCheckpoints) -> None:
        """Forget also, when the time comes, what was asked for or saved through another object."""
        self._keys |= others._keys

    def forget(self) -> None:
        """Remove the states that were asked for or saved through this object."""
        for key in self._keys:
            for path in self._paths(key):
                path.unlink(missing_ok=True)
        self._keys.clear()

    def _paths(self, key: str) -> tuple[Path, Path]:
        """Return the file of the newest state, and that of the one before."""
        return self.folder / f"{key}.pt", self.folder / f"{key}.previous.pt"
