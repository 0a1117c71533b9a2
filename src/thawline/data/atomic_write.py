"""Write files atomically, and recognize a full disk."""

import errno
import os
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

DISK_FULL = re.compile("No space left on device|Disk quota exceeded|disk is full")


def write_atomic(target: Path, write: Callable[[Path], Any], previous: Path | None = None) -> None:
    """Write a file that never exists half-written, not even after a power failure.

    `write` writes to the path that it receives. A file that is replaced is kept as `previous`.
    """
    unfinished = target.with_name(f"{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode  # follows the umask; safetensors would write 0600
        write(unfinished)
        unfinished.chmod(mode)
        sync(unfinished)
        if previous is not None and target.exists():
            target.replace(previous)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until the file's content is on disk."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def is_disk_full(error: BaseException | None) -> bool:
    """Return whether a full disk or quota caused an error; some libraries report it as text."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if DISK_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False
