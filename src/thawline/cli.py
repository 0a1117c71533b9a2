"""The project's own commands, beside and among Kedro's."""

from __future__ import annotations

import functools
import logging
import signal
import traceback
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.io import DatasetError

from thawline.commands import activations
from thawline.errors import ThawlineError
from thawline.masking import describe_error, mask


@click.group(name="thawline")
def cli() -> None:
    """Commands that Kedro adds to, or replaces among, its own."""


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(*args: Any, **kwargs: Any) -> Any:
    """Run as Kedro does, but say in one message, instead of a page, what a user got wrong."""
    signal.signal(signal.SIGTERM, _exit)
    # Kedro logs a node's error before it raises it; a message to the user is printed once.
    logging.getLogger("kedro.pipeline.node").addFilter(_is_no_error)
    try:
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]
    except (ThawlineError, DatasetError) as error:
        raise click.ClickException(mask(str(error))) from error
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith("Failed to find the pipeline"):
            raise click.ClickException(str(error)) from error
        if (masked := describe_error(error)) != "".join(traceback.format_exception(error)):
            raise click.ClickException(masked) from None
        raise


def _exit(number: int, _: Any) -> None:
    """End as a killed process does, but with everything closed that has to be."""
    raise SystemExit(128 + number)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno < logging.ERROR


cli.add_command(
    click.Command(
        "run",
        callback=_run,
        params=kedro_run.params,
        help=kedro_run.help,
        short_help="Run a pipeline.",
    )
)
cli.add_command(activations)
