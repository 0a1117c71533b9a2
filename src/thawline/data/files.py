"""Write files that are there as a whole or not at all, and tell a full disk."""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = re.compile("No space left on device|Disk quota exceeded|disk is full")


def write_atomic(target: Path, write: Callable[[Path], Any], previous: Path | None = None) -> None:
    """Write a file that nobody ever sees unfinished, not even after the power failed.

    Args:
        target: the file, in a folder that exists; one of that name is replaced.
        write: writes to the path that it is given.
        previous: where a file that is replaced is kept.
    """
    unfinished = target.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # as the umask has it; safetensors makes files private
        write(unfinished)
        unfinished.chmod(mode)
        sync(unfinished)
        if previous is not None and target.exists():
            target.replace(previous)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content is on the disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk, or quota, is behind an error; some libraries tell it as text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
