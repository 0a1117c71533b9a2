"""Wiring: which node takes what, and in thin nodes.py what it calls."""

from collections.abc import Callable
from typing import Any

from kedro.pipeline import Node

Names = str | list[str]


def make_node(
    function: Callable[..., Any], inputs: Names | dict[str, str], outputs: Names, name: str = ""
) -> Node:
    """Return a node that is called as its function, unless it has another name."""
    return Node(function, inputs, outputs, name=name or function.__name__)
