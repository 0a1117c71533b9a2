"""The project's own commands, beside and among Kedro's."""

import functools
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.io import DatasetError
from kedro.utils import find_kedro_project

from thawline.cli.log_run import log_run
from thawline.cli.main import activations
from thawline.data.atomic_write import is_disk_full
from thawline.errors import ThawlineError
from thawline.tracking.redaction import mask, mask_traceback


@click.group(name="thawline")
def cli() -> None:
    """Commands that Kedro adds to, or replaces among, its own."""


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(*args: Any, **kwargs: Any) -> Any:
    """Run as Kedro does, but end with one message, not a traceback, if the user can act on it."""
    signal.signal(signal.SIGTERM, _exit)
    # Kedro logs a node's error before it raises it; a message to the user is printed once.
    logging.getLogger("kedro.pipeline.node").addFilter(_is_no_error)
    try:
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]
    except Exception as error:
        message = _message(error)
        if message is not None:
            raise click.ClickException(mask(message)) from error
        if masked := mask_traceback(error):
            raise click.ClickException(masked) from None
        raise


def _message(error: Exception) -> str | None:
    """Return the message of an error that the user can act on; None for a bug of Thawline."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from omegaconf.errors import OmegaConfBaseException

    if is_disk_full(error):
        return (
            f"The disk is full. {_free_space()} Free some (thawline activations --clear removes"
            " what only saves time), then repeat the command with"
            f" training.resume=true: finished epochs are kept. What was being written: {error}"
        )
    if isinstance(error, (ThawlineError, DatasetError, OmegaConfBaseException)):
        return str(error)
    if isinstance(error, MlflowException):
        return (
            f"MLflow ({mlflow.get_tracking_uri()}) cannot be written to or read from: {error}\n"
            "When it is back, repeat the command with training.resume=true: finished epochs are"
            " kept. Or log what was saved by kedro log-run VERSION."
        )
    return str(error) if str(error).startswith("Failed to find the pipeline") else None


def _free_space() -> str:
    """Return how much is free in the folders that a run writes to."""
    project = Path(find_kedro_project(Path.cwd()) or Path.cwd())  # as Kedro's session has it
    free: dict[int, tuple[Path, int]] = {}  # by device
    for folder in filter(Path.is_dir, (project, project / "data", *project.glob("data/*"))):
        free.setdefault(folder.stat().st_dev, (folder, shutil.disk_usage(folder).free))
    return " ".join(f"In {folder} {size / 1e6:.1f} MB are free." for folder, size in free.values())


def _exit(number: int, _: Any) -> None:
    """End as a killed process does, but with everything closed that has to be."""
    raise SystemExit(128 + number)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


run = click.Command(  # by this name `python -m thawline` finds it
    "run",
    callback=_run,
    params=kedro_run.params,
    help=kedro_run.help,
    short_help="Run a pipeline.",
)
cli.add_command(run)
cli.add_command(activations)
cli.add_command(log_run)
