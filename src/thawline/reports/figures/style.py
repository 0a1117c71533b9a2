"""Share colors, sizes, and names that fit among all figures."""

import html
from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go

# Okabe and Ito's palette, safe for color-blind readers.
TRAIN, VALIDATION = "#0072b2", "#d55e00"
# The same palette for any number of strategies, without the yellow and the black, of which a light
# or a dark page would hide one.
COLORS = (TRAIN, VALIDATION, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c8c8c")
LINE = 16  # px, height of a line of text
MAX_TICK_LETTERS = 14  # of a class name beside an axis


def finish(figure: go.Figure, title: str, **layout: Any) -> go.Figure:
    """Give a figure its title and the style of all figures."""
    return figure.update_layout(title={"text": title}, template="plotly_white", **layout)


def legend_below(height: int, lines: int) -> dict[str, Any]:
    """Return the layout of plots of `height` px with a legend of so many lines below them."""
    space = round(1.4 * LINE * lines)
    legend = {"yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "traceorder": "normal"}
    return {"height": height + space, "margin": {"b": 70 + space}, "legend": legend}


def empty_figure(title: str) -> go.Figure:
    """Return a figure that says why there is nothing to show; reports leave it out."""
    return finish(go.Figure(), title)


def shorten(name: str, letters: int) -> str:
    """Return the beginning and end of a name, escaped for Plotly."""
    end = (letters - 1) // 2
    short = name if len(name) <= letters else f"{name[: letters - 1 - end]}…{name[-end:]}"
    return as_text(short)


def class_axis(names: Iterable[Any]) -> dict[str, Any]:
    """Return the settings of an axis of classes, whose long names are shortened."""
    short = {name: shorten(str(name), MAX_TICK_LETTERS) for name in names}
    return {"type": "category", "labelalias": short}


def as_text(name: str) -> str:
    """Escape a name for Plotly, which does not know &quot;."""
    return html.escape(name, quote=False)
