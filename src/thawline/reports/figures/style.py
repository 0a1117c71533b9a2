"""What all figures share: colors, sizes, and names that fit."""

from __future__ import annotations

import html

# Okabe and Ito's palette, safe for color-blind readers.
TRAIN, VALIDATION = "#0072b2", "#d55e00"
# The same palette for any number of strategies, without the yellow and the black that only one of a
# light and a dark page shows; further ones differ by symbol and dash.
COLOURS = (TRAIN, VALIDATION, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c8c8c")
LINE = 16  # px, height of a line of text
MOST_TICK_LETTERS = 14  # of a class's name beside an axis


def shorten(name: str, letters: int) -> str:
    """Return a name's beginning and end, with nothing in it that Plotly takes for markup."""
    end = (letters - 1) // 2
    short = name if len(name) <= letters else f"{name[: letters - 1 - end]}…{name[-end:]}"
    return as_text(short)


def as_text(name: str) -> str:
    """Return a name with nothing in it that Plotly takes for markup; it does not know &quot;."""
    return html.escape(name, quote=False)
