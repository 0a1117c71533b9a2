"""Errors whose message is written for the user: what is wrong, what was found, how to fix it."""

from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches

MAX_NAMES_IN_MESSAGE = 3
MAX_LINES_IN_MESSAGE = 5


class ThawlineError(Exception):
    """Base class of all errors that end a run with their message alone, without a traceback."""


class ProjectError(ThawlineError, FileNotFoundError):
    """The folder contains no Kedro project, or an incomplete one."""


class ParameterError(ThawlineError, ValueError):
    """A parameter has a value that cannot be used."""


class DataError(ThawlineError, ValueError):
    """The images or their table cannot be used."""


class CheckpointError(ThawlineError, ValueError):
    """A weights file cannot be read or does not fit the network."""


class TrainingError(ThawlineError, RuntimeError):
    """Training cannot continue, or violated a guarantee such as the freeze contract."""


class TrackingError(ThawlineError):
    """MLflow cannot store what a run logs."""


class StorageError(ThawlineError):
    """The database of a sweep does not respond."""


class ExportError(ThawlineError, RuntimeError):
    """A network cannot be exported, or the exported one gives different outputs."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a clause with the closest name, or nothing if none is close."""
    close = get_close_matches(given, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def alternatives(given: str, known: Collection[str]) -> str:
    """Return a clause with the closest name, if any, and all possible names."""
    return f"{did_you_mean(given, known)} (possible: {', '.join(sorted(known))})"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else the name of its class."""
    return str(error).partition("\n")[0] or type(error).__name__


def first_lines(lines: Sequence[str]) -> str:
    """Return the first lines of a list, indented, and how many more there are."""
    more = [f"and {len(lines) - MAX_LINES_IN_MESSAGE} more"] * (len(lines) > MAX_LINES_IN_MESSAGE)
    return "\n".join(f"  {line}" for line in [*lines[:MAX_LINES_IN_MESSAGE], *more])


def summarize_names(names: Sequence[str]) -> str:
    """Return the number of names and the first ones."""
    return f"{len(names)} ({first_names(names)})"


def first_names(names: Sequence[str], count: int = MAX_NAMES_IN_MESSAGE) -> str:
    """Return the first `count` names, and an ellipsis if there are more."""
    return ", ".join(names[:count]) + ", …" * (len(names) > count)
