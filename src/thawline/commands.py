"""The console command `thawline`: look at things before a run, without a project or a download."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from thawline.errors import ThawlineError

CLASSES = 1000  # of ImageNet, so that sizes are those that papers and model cards give


@click.group()
def main() -> None:
    """Look at networks and files before fine-tuning; pipelines are run by `kedro run`."""


@main.command()
@click.argument("backbone")
@click.option(
    "--size",
    type=click.IntRange(min=1),
    metavar="PX",
    help="Side of the images; by default that of the pretrained weights.",
)
@click.option("--own-head", is_flag=True, help="As with model.head=own, for a network of your own.")
def stages(backbone: str, size: int | None, own_head: bool) -> None:
    """Show the stages of BACKBONE, which a strategy freezes or trains by name.

    BACKBONE is what model.backbone takes: a classifier of torchvision (resnet18), timm/NAME, or
    package.module:Factory for your own. It is built with random weights and a head for 1000
    classes; nothing is downloaded. Compute is the share of a forward pass's multiply-adds.
    """
    from thawline.backbones import build_network, pretrained_preprocessing
    from thawline.options import ModelOptions
    from thawline.stages import stage_table

    head = "own" if own_head else "linear"
    options = ModelOptions(backbone=backbone, weights="none", head=head)
    try:
        size = size or pretrained_preprocessing(options).size
        network, _ = build_network(options, CLASSES, size, seed=0)
        rows = stage_table(network, size)
    except ThawlineError as error:
        raise click.ClickException(str(error)) from error
    table = Table("stage")
    for title in ("parameters", f"output at {size} px", "compute"):
        table.add_column(title, justify="right")
    for row in rows.itertuples(index=False):
        table.add_row(str(row.stage), f"{row.parameters:,}", str(row.output), f"{row.compute:.1%}")
    Console(markup=False).print(table)
    last = ", ".join(rows["stage"][-2:])
    click.echo(
        f"A phase trains the last two with `trainable: [{last}]` or `trainable: {{last: 2}}`."
    )


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
        return "\n".join(f"{_readable(name)}: {_inner(v)}" for name, v in value.items())
    if isinstance(value, (list, tuple)):
        separator = "\n" if any(isinstance(v, dict) for v in value) else ", "
        return separator.join(map(_readable, value))
    text = f"{value:,}" if type(value) is int else str(value)
    # What a stranger wrote into a file must not steer the terminal.
    return "".join(c if c.isprintable() else "?" for c in text)


def _inner(value: Any) -> str:
    """Return a value inside another one: on lines of its own, indented, if it has several."""
    text = _readable(value)
    return "\n" + textwrap.indent(text, "  ") if "\n" in text else text
