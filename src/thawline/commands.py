"""The console command `thawline`: what can be asked without a Kedro project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from thawline.errors import ThawlineError


@click.group()
def main() -> None:
    """The `thawline` command: look at things without running a pipeline."""


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
def inspect(file: Path) -> None:
    """Show what a checkpoint FILE holds, without executing anything in it."""
    from thawline.checkpoints import describe_checkpoint  # torch takes seconds to import

    try:
        description = describe_checkpoint(file)
    except ThawlineError as error:
        raise click.ClickException(str(error).removeprefix("model.weights: ")) from error
    table = Table(show_header=False)
    for name, value in description.items():
        if value not in (None, "", [], {}):
            table.add_row(name.replace("_", " "), _readable(value))
    Console(markup=False).print(table)


def _readable(value: Any) -> str:
    """Return a value as text: numbers with separators, a list with commas, a dict line by line."""
    if isinstance(value, dict):
        return "\n".join(f"{_readable(name)}: {_readable(v)}" for name, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_readable, value))
    text = f"{value:,}" if type(value) is int else str(value)
    # What a stranger wrote into a file must not steer the terminal.
    return "".join(c if c.isprintable() else "?" for c in text)
