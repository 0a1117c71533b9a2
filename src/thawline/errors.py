"""Errors whose message is written for the user: what was wanted, what was found, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class ThawlineError(Exception):
    """Base of all errors that end a run with their message alone, without a traceback."""


class ProjectError(ThawlineError, FileNotFoundError):
    """There is no project here, or not what it should hold."""


class ParameterError(ThawlineError, ValueError):
    """A parameter has a value that cannot be used."""


class DataError(ThawlineError, ValueError):
    """The images or their table cannot be used."""


class CheckpointError(ThawlineError, ValueError):
    """A file of weights cannot be read or does not fit the network."""


class TrainingError(ThawlineError, RuntimeError):
    """Training cannot go on, or broke a promise such as the freeze contract."""


class TrackingError(ThawlineError):
    """What a run logs cannot be written to MLflow."""


class StorageError(ThawlineError):
    """The database of a sweep does not answer."""


class ExportError(ThawlineError, RuntimeError):
    """A network cannot be exported, or its export computes something else."""


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return a clause with the nearest spelling, or nothing where none is near."""
    close = get_close_matches(given, list(known), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""
