"""The command line: `thawline`, and what `kedro run` says and catches in this project."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Return what Kedro looks for here, since `thawline --help` need not import Kedro.

    It is `cli`, its group of this project's commands, and `run` for `python -m thawline`.
    """
    if name not in ("cli", "run"):
        raise AttributeError(f"module 'thawline.cli' has no attribute {name!r}")
    from thawline.cli import kedro_run

    return getattr(kedro_run, name)
