"""Write files that are there as a whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(target: Path, write: Callable[[Path], Any]) -> None:
    """Write a file that nobody ever sees unfinished, not even after the power failed.

    Args:
        target: the file, in a folder that exists; one of that name is replaced.
        write: writes to the path that it is given.
    """
    unfinished = target.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        write(unfinished)
        sync(unfinished)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
