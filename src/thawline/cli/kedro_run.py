"""The project's own commands, beside and among Kedro's."""

import logging
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.io import DatasetError

from thawline.api import find_place
from thawline.cli.main import activations
from thawline.cli.verbs import environment
from thawline.data.atomic_write import is_disk_full
from thawline.errors import ParameterError, ThawlineError
from thawline.hooks.configuration import UNREADABLE, find_project, read_configuration, show_all_logs
from thawline.options import validate_parameters
from thawline.tracking.redaction import mask, mask_traceback
from thawline.tracking.run_tags import command_line


@contextmanager
def told() -> Iterator[None]:
    """End with one message, not a traceback, where the user can act on an error."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # closes everything
    # Kedro logs a node's error before it raises it; a message to the user is printed once.
    logger = logging.getLogger("kedro.pipeline.node")
    logger.addFilter(lambda record: record.levelno < logging.ERROR)
    try:
        yield
    except Exception as error:
        if (message := _message(error)) is not None:
            again = "" if isinstance(error, ParameterError) else f"\nThen repeat: {command_line()}"
            raise click.ClickException(mask(message) + again) from error
        if masked := mask_traceback(error):
            raise click.ClickException(masked) from None
        raise


def _run(*args: Any, verbose: bool = False, **kwargs: Any) -> Any:
    """Run as Kedro does, after a look at the parameters."""
    if verbose:
        show_all_logs()
    with told():
        asked = kwargs["env"], kwargs["params"], kwargs["conf_source"]
        project = Path.cwd() if kwargs["conf_source"] else find_project()
        validate_parameters(read_configuration(project, *asked)["parameters"])  # in a second
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]


def _message(error: Exception) -> str | None:
    """Return the message of an error that the user can act on; None for a bug of Thawline."""
    if is_disk_full(error):
        return (
            f"The disk is full. {_free_space()} Free some (thawline activations --clear removes"
            " what only saves time), then repeat the command with"
            f" training.resume=true: finished epochs are kept. What was being written: {error}"
        )
    if isinstance(error, PermissionError) and error.filename:
        return (
            f"{error.filename} cannot be written or read (permission denied). Get the"
            " permission, or work in another folder."
        )
    if isinstance(error, (ThawlineError, DatasetError, *UNREADABLE)):
        return str(error)
    import mlflow  # takes a second, which the message of a wrong parameter should not wait for

    if isinstance(error, mlflow.MlflowException):
        return (
            f"MLflow ({mlflow.get_tracking_uri()}) cannot be written to or read from: {error}\n"
            "When it is back, repeat the command with training.resume=true: finished epochs are"
            " kept. Or log what was saved by kedro log-run VERSION."
        )
    return str(error) if str(error).startswith("Failed to find the pipeline") else None


def _free_space() -> str:
    """Return how much is free in the folders that a run writes to."""
    project = find_place().project
    free: dict[int, tuple[Path, int]] = {}  # by device
    for folder in filter(Path.is_dir, (project, project / "data", *project.glob("data/*"))):
        free.setdefault(folder.stat().st_dev, (folder, shutil.disk_usage(folder).free))
    return " ".join(f"In {folder} {size / 1e6:.1f} MB are free." for folder, size in free.values())


@click.command("log-run")
@click.argument("version")
@environment
def log_run(version: str, env: str | None) -> None:
    """Log the catalog entries of VERSION to a new MLflow run, if an outage has kept them from it.

    VERSION is the name of their folders in data/, such as 2026-11-21T04.32.09.833Z.
    """
    from kedro.framework.project import pipelines
    from kedro.framework.session import KedroSession

    from thawline.tracking.entries import log_version

    try:
        with KedroSession.create(env=env) as session:
            context: Any = session.load_context()  # type: ignore[attr-defined]
            names = {name for each in pipelines.values() for name in each.all_outputs()}
            logged = log_version(context.catalog, sorted(names), version)
    except ThawlineError as error:
        raise click.ClickException(mask(str(error))) from error
    click.echo(f"Logged to MLflow: {', '.join(logged)}")


run = click.Command(  # by this name `python -m thawline` finds it
    "run",
    callback=_run,
    params=[
        *kedro_run.params,
        click.Option(["--verbose"], is_flag=True, help="Print everything that the log file holds."),
    ],
    help=kedro_run.help,
    short_help="Run a pipeline.",
)
# Kedro adds these commands to its own, or replaces its own by them.
cli = click.Group("thawline", [run, activations, log_run])
