"""The command line: `thawline`, and what `kedro run` says and catches in this project."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return Kedro's group of this project's commands; `thawline --help` need not import Kedro."""
    if name != "cli":
        raise AttributeError(f"module 'thawline.cli' has no attribute {name!r}")
    from thawline.cli.kedro_run import cli

    return cli
