"""What a check of `thawline doctor` found."""

from pathlib import Path
from typing import Literal, NamedTuple

State = Literal["ok", "warning", "problem"]


class CheckResult(NamedTuple):
    """What a check found.

    Attributes:
        name: of what was checked.
        state: ok; warning: a run works, but something should be known; problem: it would fail.
        message: what was found and, unless ok, what to do.
    """

    name: str
    state: State
    message: str


def existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())
