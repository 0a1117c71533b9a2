"""The project's own commands, beside and among Kedro's."""

from __future__ import annotations

import functools
import logging
from typing import Any

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.session import KedroSession
from kedro.io import DatasetError
from rich import print as rich_print
from rich.table import Table

from thawline.errors import ThawlineError
from thawline.options import validate_parameters


@click.group(name="thawline")
def cli() -> None:
    """Commands that Kedro adds to, or replaces among, its own."""


@cli.command()
@click.option("--empty", is_flag=True, help="Remove all of it.")
@click.option("--env", "-e", help="Kedro configuration environment, `local` by default.")
def activations(empty: bool, env: str | None) -> None:
    """Show, or empty, the store of what frozen layers yield (data/04_feature/activations)."""
    with KedroSession.create(env=env) as session:
        context = session.load_context()  # type: ignore[attr-defined]
        max_gb = validate_parameters(context.config_loader["parameters"]).activations.max_gb
        store = context.catalog.load("activations")(max_gb)
    contents = store.contents()
    table = Table(*contents.columns)
    for row in contents.itertuples(index=False):
        table.add_row(*map(str, row))
    rich_print(table)
    total = f"{contents['MB'].sum():.1f} MB of at most {max_gb:g} GB in {store.folder}"
    if empty:
        store.empty()
        total += " were removed"
    click.echo(total)


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(*args: Any, **kwargs: Any) -> Any:
    """Run as Kedro does, but say in one message, instead of a page, what a user got wrong."""
    # Kedro logs a node's error before it raises it; a message to the user is printed once.
    logging.getLogger("kedro.pipeline.node").addFilter(_is_no_error)
    try:
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]
    except (ThawlineError, DatasetError) as error:
        raise click.ClickException(str(error)) from error
    except ValueError as error:
        if not str(error).startswith("Failed to find the pipeline"):
            raise
        raise click.ClickException(str(error)) from error


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
