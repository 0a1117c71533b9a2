"""Draw a network stage by stage: frozen and trainable parts, thaw lines, weight change."""

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.evaluation.stage_summary import FROZEN, PARTLY, TRAINED, line_positions
from thawline.networks.stages import HEAD
from thawline.reports.figures.style import COLORS, TRAIN, VALIDATION, finish, shorten

ROW = 34  # px, height of a stage
MAX_STAGE_LETTERS = 22  # of a stage's name
STATES = {  # color, and pattern
    FROZEN: (COLORS[4], ""),
    PARTLY: (VALIDATION, "/"),
    TRAINED: (VALIDATION, ""),
}
LEGEND = {
    "orientation": "h", "x": 0, "xref": "container",
    "y": 0, "yref": "container", "yanchor": "bottom",
}  # fmt: skip
HEADING = "<b>Stage, from the input</b><br>output · parameters · compute"
LINE_COLOR = COLORS[2]


def stage_figure(table: pd.DataFrame) -> go.Figure:
    """Return the stages from input to head, one column per phase, with the thaw line.

    Args:
        table: of `describe_stages`.
    """
    numbers = range(1, 1 + sum(str(column).startswith("phase_") for column in table))
    figure = go.Figure()
    for state, (color, pattern) in STATES.items():
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
                name=state if state != PARTLY else "partly trained",
                marker={"color": color, "pattern": {"shape": pattern}},
                customdata=[[number, *_cell(stage)] for number, _, stage in cells],
                hovertemplate="phase %{customdata[0]}, %{customdata[1]}: " + state
                + "<br>%{customdata[2]}<extra></extra>",
            )  # fmt: skip
    _add_thaw_line(figure, line_positions(table))
    labels = [f"<b>{name}</b><br>{sizes}" for name, sizes in map(_cell, table.itertuples())]
    figure.update_xaxes(
        title_text="Phase", range=[0.5, len(numbers) + 0.5], tick0=1,
        dtick=max(1, -(-len(numbers) // 12)), showgrid=False, zeroline=False,
    )  # fmt: skip
    figure.update_yaxes(
        range=[len(table) - 0.4, -1.4], tickvals=[*range(-1, len(table))],
        ticktext=[HEADING, *labels], tickfont={"size": 11}, showgrid=False, zeroline=False,
        automargin=True,
    )  # fmt: skip
    return finish(
        figure,
        "Frozen and trained stages per phase, and the thaw line",
        barmode="overlay",
        height=220 + ROW * (len(table) + 1),
        legend=LEGEND,
        margin={"l": 10, "r": 15, "t": 70, "b": 110},
    )


def weight_change_figure(change: pd.DataFrame) -> go.Figure:
    """Return the weight change of each stage and the CKA of its output.

    The change of the new head is given as a number: a bar would dwarf all others.

    Args:
        change: the table of `measure_weight_change`.
    """
    is_head = change["stage"] == HEAD
    stages, head = change[~is_head], change[is_head].iloc[0]
    names = [shorten(str(name), MAX_STAGE_LETTERS) for name in change["stage"]]
    rows = [*range(len(stages))]
    figure = make_subplots(rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.08)
    for measure, name, color in (
        ("relative_l2", "weights", TRAIN),
        ("statistics_l2", "batch norm statistics", COLORS[4]),
    ):
        if stages[measure].notna().any():
            figure.add_bar(
                orientation="h", x=stages[measure], y=rows, row=1, col=1, name=name,
                marker={"color": color}, texttemplate="%{x:.2~g}", textposition="outside",
                cliponaxis=False, customdata=names,
                hovertemplate="%{customdata}: %{x:.4~g}<extra>" + name + "</extra>",
            )  # fmt: skip
    figure.add_scatter(
        x=stages["cka"], y=rows, row=1, col=2, name="CKA of the output",
        mode="markers+text", marker={"color": VALIDATION, "size": 9, "symbol": "diamond"},
        texttemplate="%{x:.3f} ", textposition="middle left", customdata=names,
        hovertemplate="%{customdata}: %{x:.5f}<extra>CKA</extra>",
    )  # fmt: skip
    for column, text in ((1, f"new, changed by {head['relative_l2']:.2g}"), (2, "new")):
        figure.add_annotation(
            text=text, x=0, xref="x domain", xanchor="left", y=len(rows), showarrow=False,
            row=1, col=column,
        )  # fmt: skip
    furthest = stages[["relative_l2", "statistics_l2"]].max().max()
    span = max(0.1, 1 - float(stages["cka"].min()))
    figure.update_xaxes(
        title_text="Relative change (L2)", range=[0, 1.35 * furthest or 1], nticks=4, row=1, col=1
    )
    figure.update_xaxes(
        title_text="CKA", range=[1 - 1.6 * span, 1 + 0.1 * span], nticks=4,
        row=1, col=2,
    )  # fmt: skip
    figure.update_yaxes(range=[len(rows) + 0.6, -0.6], showgrid=False, zeroline=False)
    figure.update_yaxes(
        tickvals=[*range(len(names))], ticktext=names, tickfont={"size": 11}, automargin=True,
        row=1, col=1,
    )  # fmt: skip
    return finish(
        figure,
        "Weight change per stage",
        bargap=0.25,
        height=250 + ROW * len(names),
        legend=LEGEND,
        margin={"l": 10, "r": 15, "t": 70, "b": 140},
    )


def _cell(stage: Any) -> tuple[str, str]:
    """Return a stage's name and its size in words."""
    has_output = isinstance(stage.output, str) and stage.output  # a CSV reads nothing as NaN
    output = stage.output if has_output else "no output"
    sizes = f"{output} · {_count(stage.parameters)} · {stage.compute:.1%}"
    return shorten(str(stage.stage), MAX_STAGE_LETTERS), sizes


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
            line={"color": LINE_COLOR, "width": 5},
        )  # fmt: skip
