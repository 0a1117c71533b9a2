"""Draw a network stage by stage: what is frozen, the thaw lines, what training changed."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.figures.style import COLOURS, TRAIN, VALIDATION, shorten
from thawline.model_summary import FROZEN, PARTLY, TRAINED, line_places
from thawline.stages import HEAD

ROW = 34  # px, height of a stage
STAGE_LETTERS = 22  # of a stage's name
STATES = {FROZEN: COLOURS[4], PARTLY: COLOURS[5], TRAINED: VALIDATION}
LINE_COLOUR = COLOURS[2]


def stage_figure(table: pd.DataFrame) -> go.Figure:
    """Return the stages from input to head, a column a phase, with the thaw line through them.

    Args:
        table: of `model_summary.describe_stages`.
    """
    numbers = range(1, 1 + sum(str(column).startswith("phase_") for column in table))
    figure = go.Figure()
    for state, colour in STATES.items():
        cells = [
            (number, row, stage)
            for number in numbers
            for row, stage in enumerate(table.itertuples())
            if getattr(stage, f"phase_{number}") == state
        ]
        if cells:
            figure.add_bar(
                orientation="h",
                x=[0.9] * len(cells),
                base=[number - 0.45 for number, _, _ in cells],
                y=[row for _, row, _ in cells],
                width=0.86,
                name=state if state != PARTLY else "in part trained",
                marker={"color": colour},
                customdata=[[number, *_cell(stage)] for number, _, stage in cells],
                hovertemplate="phase %{customdata[0]}, %{customdata[1]}: " + state
                + "<br>%{customdata[2]}<extra></extra>",
            )  # fmt: skip
    _add_thaw_line(figure, line_places(table))
    labels = [
        "<b>input</b>",
        *(f"<b>{_cell(s)[0]}</b><br>{_cell(s)[1]}" for s in table.itertuples()),
    ]
    figure.update_xaxes(
        title_text="Phase", range=[0.5, len(numbers) + 0.5], dtick=max(1, -(-len(numbers) // 12)),
        tick0=1, side="top", showgrid=False, zeroline=False, fixedrange=True,
    )  # fmt: skip
    figure.update_yaxes(
        range=[len(table) - 0.4, -1.4], tickvals=[*range(-1, len(table))], ticktext=labels,
        tickfont={"size": 11}, showgrid=False, zeroline=False, automargin=True, fixedrange=True,
    )  # fmt: skip
    return figure.update_layout(
        title={"text": "What each phase trains, stage by stage,<br>and the thaw line above which"
               " it computes"},
        template="plotly_white",
        barmode="overlay",
        height=230 + ROW * (len(table) + 1),
        legend={"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container",
                "yanchor": "bottom"},
        margin={"l": 10, "r": 15, "t": 130, "b": 60},
    )  # fmt: skip


def weight_change_figure(change: pd.DataFrame) -> go.Figure:
    """Return how far each stage moved from where training began, and what it yields.

    The head is new, so it is left out of the bars, which it would dwarf, and told in words.

    Args:
        change: the table of `model_summary.weight_change`.
    """
    stages = change[change["stage"] != HEAD]
    head = change.loc[change["stage"] == HEAD, "relative_l2"].iloc[0]
    rows, names = [*range(len(stages))], [shorten(str(n), STAGE_LETTERS) for n in stages["stage"]]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.08)
    for column, measure, colour in ((1, "relative_l2", TRAIN), (1, "statistics_l2", COLOURS[4])):
        if stages[measure].notna().any():
            figure.add_bar(
                orientation="h", x=stages[measure], y=rows, row=1, col=column,
                name="weights" if measure == "relative_l2" else "batch norm's statistics",
                marker={"color": colour}, texttemplate="%{x:.2~g}", textposition="outside",
                cliponaxis=False, customdata=names,
                hovertemplate="%{customdata}: %{x:.4~g}<extra></extra>",
            )  # fmt: skip
    figure.add_scatter(
        x=stages["cka"], y=rows, row=1, col=2, name="CKA of what it yields",
        mode="markers", marker={"color": VALIDATION, "size": 9, "symbol": "diamond"},
        customdata=names, hovertemplate="%{customdata}: %{x:.4f}<extra></extra>",
    )  # fmt: skip
    furthest = stages[["relative_l2", "statistics_l2"]].max().max()
    lowest = min(0.9, float(stages["cka"].min(skipna=True)) - 0.05)
    figure.update_xaxes(
        title_text="Change, relative", range=[0, 1.35 * furthest or 1], nticks=4, row=1, col=1
    )
    figure.update_xaxes(
        title_text="CKA, 1: the same", range=[max(lowest, -0.03), 1.03], nticks=4, row=1, col=2
    )
    figure.update_yaxes(range=[len(stages) - 0.4, -0.6], zeroline=False)
    figure.update_yaxes(
        tickvals=rows, ticktext=names, tickfont={"size": 11}, automargin=True, row=1, col=1
    )
    return figure.update_layout(
        title={"text": "How far training moved each stage, and what it yields<br><sup>The new head"
               f" moved by {head:.2g} times the length of its random beginning</sup>"},
        template="plotly_white",
        bargap=0.25,
        height=250 + ROW * len(stages),
        legend={"orientation": "h", "x": 0, "xref": "container", "y": 0, "yref": "container",
                "yanchor": "bottom"},
        margin={"l": 10, "r": 15, "t": 90, "b": 120},
    )  # fmt: skip


def _cell(stage: Any) -> tuple[str, str]:
    """Return a stage's name and its size in words."""
    output = stage.output or "no output of its own"
    sizes = f"{output} · {_count(stage.parameters)} · {stage.compute:.1%}"
    return shorten(str(stage.stage), STAGE_LETTERS), sizes


def _count(number: int) -> str:
    """Return a number of parameters with a unit."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return str(number)


def _add_thaw_line(figure: go.Figure, places: dict[int, float]) -> None:
    """Draw a line across each phase's column, at its place between the stages."""
    x = [edge for number in places for edge in (number - 0.5, number + 0.5)]
    y = [place - 0.5 for place in places.values() for _ in range(2)]
    if places:
        figure.add_scatter(
            x=x, y=y, mode="lines", name="thaw line", hoverinfo="skip",
            line={"color": LINE_COLOUR, "width": 5},
        )  # fmt: skip
