"""Draw strategies side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.evaluation.comparison import TrainingOutcome, format_seconds, group_by_strategy
from thawline.reports.figures.style import COLOURS, LINE, as_text, shorten

FAINT = "88"  # appended to a color: half opaque
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot")
LETTER = 6.6  # px, mean width of a letter of 12 px
STRIP = 46  # px, height of a strategy's strip with its name above its dots
PHONE = 222  # px, width of the axes on a phone: labels that are apart there are apart everywhere
WEIGHTS = (6, 1)  # of a label and its line: two labels on each other are worst, two lines harmless
POINT = 9  # px, from a point's middle to where a label may begin
MOST_LETTERS = 24  # of a name in a figure, so that it fits there


def compared_accuracy(trials: Sequence[TrainingOutcome], table: pd.DataFrame) -> go.Figure:
    """Return test accuracies: a dot a seed, mean and 95 % interval a strategy, best on top.

    Args:
        trials: the trainings.
        table: of `comparison.compare`.
    """
    figure = make_subplots()
    _draw_accuracies(figure, trials, table)
    return figure.update_layout(
        title={"text": "Test accuracy: a dot for each seed, bars for mean and 95 % interval"},
        template="plotly_white",
        height=110 + STRIP * len(table),
        showlegend=False,
    )


def cost_against_accuracy(table: pd.DataFrame) -> go.Figure:
    """Return mean test accuracy by seconds of training, a point a strategy of `table`."""
    figure = make_subplots()
    plotted = 260 + LINE * len(table)
    _draw_costs(figure, table, plotted)
    return figure.update_layout(
        title={"text": "Accuracy against time: best is top left"},
        template="plotly_white",
        height=plotted + 110,
        margin={"t": 50, "b": 60},
        showlegend=False,
    )


def compared_curves(trials: Sequence[TrainingOutcome], table: pd.DataFrame) -> go.Figure:
    """Return validation loss and accuracy by epoch: strong the mean over seeds, faint each seed.

    A mean ends where the first of its seeds ends. `table` gives the order of strategies.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    _draw_curves(figure, trials, table, cells=((1, 1), (2, 1)))
    figure.update_xaxes(title_text=None, row=1, col=1)
    legend = LINE * 1.4 * len(table)
    return figure.update_layout(
        title={"text": "Validation by epoch: the mean over seeds, and faintly each seed"},
        template="plotly_white",
        height=620 + legend,
        margin={"b": 70 + legend},
        legend={"yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    )


def comparison_figure(trials: Sequence[TrainingOutcome], table: pd.DataFrame) -> go.Figure:
    """Return accuracies, cost and validation curves of the strategies in one figure."""
    plotted = 260 + LINE * len(table)
    strips = STRIP * len(table) + 40
    upper = max(plotted, strips)
    figure = make_subplots(
        rows=2,
        cols=2,
        row_heights=[upper, 340],
        horizontal_spacing=0.1,
        vertical_spacing=100 / (upper + 440),
        subplot_titles=(
            "Test accuracy: seeds, mean, 95 % interval",
            "Accuracy against time: best is top left",
            "Validation loss",
            "Validation accuracy",
        ),
    )
    _draw_accuracies(figure, trials, table, row=1, col=1)
    _draw_costs(figure, table, upper, row=1, col=2)
    _draw_curves(figure, trials, table, cells=((2, 1), (2, 2)))
    return figure.update_layout(
        title={"text": "Strategies compared"},
        template="plotly_white",
        height=upper + 440 + 130,
        legend={"orientation": "h", "y": -0.1, "yanchor": "top"},
    )


class Style(NamedTuple):
    """How a strategy looks in every figure."""

    color: str
    symbol: str
    dash: str


def _styles(table: pd.DataFrame) -> dict[str, Style]:
    """Return a style for each strategy, no two alike up to 168 of them."""
    return {
        name: Style(
            COLOURS[idx % len(COLOURS)],
            SYMBOLS[idx % len(SYMBOLS)],
            DASHES[idx // len(COLOURS) % len(DASHES)],
        )
        for idx, name in enumerate(table["strategy"])
    }


def _named(strategy: str) -> dict[str, str]:
    """Return a trace's name, which fits a legend, and the whole name for its hover text."""
    return {"name": shorten(strategy, MOST_LETTERS), "meta": as_text(strategy)}


def _draw_accuracies(
    figure: go.Figure, trials: Sequence[TrainingOutcome], table: pd.DataFrame, **cell: int
) -> None:
    styles, groups = _styles(table), group_by_strategy(trials)
    for place, row in enumerate(table.to_dict("records")):
        style, group = styles[row["strategy"]], groups[row["strategy"]]
        common = {"showlegend": False, **_named(row["strategy"]), **cell}
        figure.add_scatter(
            x=[row["test_accuracy_low"], row["test_accuracy"], row["test_accuracy_high"]],
            y=[place] * 3,
            mode="lines+markers",
            line={"color": style.color, "width": 2},
            marker={"symbol": "line-ns", "size": [8, 20, 8], "line": {"width": 3}}
            | {"line_color": style.color},
            hovertemplate="%{x:.2%}<extra>%{meta}: mean and 95 % interval</extra>",
            **common,
        )
        figure.add_scatter(
            x=[trial.metrics["test_accuracy"] for trial in group],
            y=[place] * len(group),
            mode="markers",
            marker={"color": style.color, "size": 9, "opacity": 0.7},
            customdata=[trial.seed for trial in group],
            hovertemplate="%{x:.2%}<extra>%{meta}, seed %{customdata}</extra>",
            **common,
        )
        figure.add_annotation(
            text=shorten(row["strategy"], MOST_LETTERS),
            x=0,
            xref="x domain",
            xanchor="left",
            y=place,
            yshift=LINE,
            showarrow=False,
            font={"size": 12},
            **cell,
        )
    figure.update_yaxes(range=[len(table) - 0.5, -0.75], visible=False, **cell)
    figure.update_xaxes(title_text="Test accuracy", tickformat=".1%", nticks=6, **cell)


def _draw_costs(figure: go.Figure, table: pd.DataFrame, height: int, **cell: int) -> None:
    styles = _styles(table)
    x = np.log10(table["seconds"].clip(lower=0.01).to_numpy())
    y = table["test_accuracy"].to_numpy()
    left, right = _widen(x, 0.12)
    bottom, top = _widen(y, 0.25)
    names = [shorten(name, MOST_LETTERS) for name in table["strategy"]]
    across = PHONE * (x - left) / (right - left)
    down = height * (top - y) / (top - bottom)
    letters = [min(len(name), MOST_LETTERS) for name in table["strategy"]]
    for row, name, place in zip(
        table.to_dict("records"),
        names,
        _place_labels(across, down, letters, height),
        strict=True,
    ):
        style = styles[row["strategy"]]
        figure.add_scatter(
            x=[max(row["seconds"], 0.01)],
            y=[row["test_accuracy"]],
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 13},
            customdata=[[format_seconds(row["seconds"]), f"{row['trainable_parameters']:,}"]],
            hovertemplate="%{y:.2%}, %{customdata[0]}, %{customdata[1]} parameters trained"
            "<extra>%{meta}</extra>",
            showlegend=False,
            **_named(row["strategy"]),
            **cell,
        )
        figure.add_annotation(
            text=name,
            x=math.log10(max(row["seconds"], 0.01)),  # Plotly wants the exponent here
            y=row["test_accuracy"],
            xanchor=place.anchor,
            ax=0,
            ay=place.below,
            showarrow=True,
            arrowhead=0,
            arrowwidth=1,
            arrowcolor=style.color,
            standoff=6,
            font={"size": 12},
            **cell,
        )
    figure.update_xaxes(
        title_text="Seconds of training (mean)",
        type="log",
        range=[left, right],
        **_log_ticks(left, right),
        **cell,
    )
    figure.update_yaxes(title_text="Test accuracy", tickformat=".1%", range=[bottom, top], **cell)


def _log_ticks(left: float, right: float) -> dict[str, Any]:
    """Return ticks at 1, 2 and 5 times powers of ten, or at these alone on a long axis.

    Plotly's own ticks between the powers are small digits without their power.
    """
    steps = (1,) if right - left > 2.5 else (1, 2, 5)  # noqa: PLR2004
    powers = range(math.floor(left), math.ceil(right))
    values = [step * 10.0**power for power in powers for step in steps]
    return {"tickvals": values, "ticktext": [f"{value:,g}" for value in values]}


def _widen(values: np.ndarray, share: float) -> tuple[float, float]:
    """Return limits of an axis that leave a share of its length free at both ends."""
    span = float(np.ptp(values)) or 0.1
    return float(values.min()) - share * span, float(values.max()) + share * span


Box = tuple[float, float, float, float]  # left, right, top, bottom, in px


class Place(NamedTuple):
    """Where a label stands.

    Attributes:
        anchor: which part of it is straight above or below its point: left, center or right.
        below: px from the point down to the label's middle.
        boxes: of the label, and of the line from it to the point.
    """

    anchor: str
    below: float
    boxes: tuple[Box, Box]


def _place_labels(
    across: np.ndarray, down: np.ndarray, letters: Sequence[int], height: int
) -> list[Place]:
    """Return places for the labels of points: the nearest that touch the fewest other things.

    A label one part of which is straight above or below its point only moves away from the others
    where the axes are wider than those that `across` (points,) px was computed for.
    """
    taken = [
        ((x - POINT, x + POINT, y - POINT, y + POINT), 2) for x, y in zip(across, down, strict=True)
    ]

    def clashes(place: Place) -> int:
        return sum(
            weight * other
            for box, weight in zip(place.boxes, WEIGHTS, strict=True)
            for there, other in taken
            if _overlap(box, there)
        )

    places = []
    for x, y, count in zip(across, down, letters, strict=True):
        candidates = _candidates(x, y, LETTER * count, steps=len(across) + 1)
        # There is always one: no name is longer than MOST_LETTERS.
        inside = (place for place in candidates if _inside(place.boxes[0], height))
        place = min(inside, key=clashes)
        taken += zip(place.boxes, WEIGHTS, strict=True)
        places.append(place)
    return places


def _candidates(x: float, y: float, width: float, steps: int) -> Iterator[Place]:
    """Yield places for a label, the nearest first."""
    starts = {"center": x - width / 2, "right": x - width, "left": x}
    for step, side, (anchor, start) in itertools.product(range(steps), (-1, 1), starts.items()):
        below = side * LINE * (step + 1.25)
        label = (start, start + width, y + below - LINE / 2, y + below + LINE / 2)
        ends = sorted((y + side * POINT, y + below))
        yield Place(anchor, below, (label, (x - 1, x + 1, ends[0], ends[1])))


def _inside(box: Box, height: float) -> bool:
    """Return whether a label is within the axes, or hardly beyond: there are ticks on the left."""
    across = box[0] >= -LETTER / 2 and box[1] <= PHONE + 2 * LETTER
    return across and box[2] >= 0 and box[3] <= height


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def _draw_curves(
    figure: go.Figure,
    trials: Sequence[TrainingOutcome],
    table: pd.DataFrame,
    cells: tuple[tuple[int, int], tuple[int, int]],
) -> None:
    styles, groups = _styles(table), group_by_strategy(trials)
    for metric, title, (row, col) in zip(
        ("val_loss", "val_accuracy"), ("Loss (nats)", "Accuracy"), cells, strict=True
    ):
        for name in table["strategy"]:
            style = styles[name]
            common: dict[str, Any] = {
                "mode": "lines",
                "legendgroup": name,
                **_named(name),
                "row": row,
                "col": col,
            }
            histories = [trial.history.set_index("epoch")[metric] for trial in groups[name]]
            for trial, history in zip(groups[name], histories, strict=True):
                figure.add_scatter(
                    x=history.index,
                    y=history,
                    line={"color": style.color + FAINT, "width": 1, "dash": style.dash},
                    showlegend=False,
                    hovertemplate=f"%{{y:.4f}}<extra>%{{meta}}, seed {trial.seed}</extra>",
                    **common,
                )
            mean = pd.concat(histories, axis=1, join="inner").mean(axis=1)
            figure.add_scatter(
                x=mean.index,
                y=mean,
                line={"color": style.color, "width": 3, "dash": style.dash},
                marker={"symbol": style.symbol, "size": 7},
                hovertemplate="%{y:.4f}<extra>%{meta}, mean</extra>",
                showlegend=metric == "val_loss",
                **(common | {"mode": "lines+markers"}),
            )
        figure.update_yaxes(title_text=title, row=row, col=col)
        if metric == "val_accuracy":
            figure.update_yaxes(tickformat=".0%", row=row, col=col)
        most = max(1, *(len(trial.history) for trial in trials))
        epochs = {"tick0": 1, "dtick": max(1, most // 6), "range": [0.5, most + 0.5]}
        figure.update_xaxes(title_text="Epoch", row=row, col=col, **epochs)
