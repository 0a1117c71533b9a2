"""Draw strategies side by side."""

from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.reports.figures.style import (
    COLORS,
    MAX_TICK_LETTERS,
    as_text,
    finish,
    legend_below,
    shorten,
)

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot")
ROW = 40  # px, height of a strategy
MAX_LEGEND_LETTERS = 24  # of a strategy's name
CURVES = {"val_loss": "Validation loss", "val_accuracy": "Validation accuracy"}


def comparison_figure(trainings: pd.DataFrame, table: pd.DataFrame) -> go.Figure:
    """Return test accuracy per seed, with mean and 95 % interval, and accuracy by training time.

    `trainings` has a row per training; `table` is that of `compare` and gives the order.
    """
    look = _look(table)
    rows = table.assign(strategy=table["strategy"].map(as_text))
    rows["above"] = rows["test_accuracy_high"] - rows["test_accuracy"]
    rows["below"] = rows["test_accuracy"] - rows["test_accuracy_low"]
    rows["seconds"] = rows["seconds"].clip(lower=0.01)  # a logarithmic axis has no 0
    seeds = trainings.assign(strategy=trainings["strategy"].map(as_text))
    percent = {"test_accuracy": ":.2%"}
    limits = {"test_accuracy_low": ":.2%", "test_accuracy_high": ":.2%"}
    means = px.scatter(
        rows, "test_accuracy", "strategy", error_x="above", error_x_minus="below",
        hover_data=percent | limits, symbol_sequence=["line-ns-open"], **look,
    )  # fmt: skip
    means.update_traces(marker={"size": 20, "line": {"width": 3}})
    dots = px.scatter(
        seeds, "test_accuracy", "strategy", opacity=0.7, hover_data=percent | {"seed": True}, **look
    )
    dots.update_traces(marker={"size": 9})
    costs = px.scatter(
        rows, "seconds", "test_accuracy", symbol="strategy", symbol_sequence=SYMBOLS, **look,
        hover_data={"seconds": ":.1f", "test_accuracy": ":.2%", "trainable_parameters": ":,"},
    )  # fmt: skip
    costs.update_traces(marker={"size": 13})
    top = ROW * (1 + len(table))
    figure = make_subplots(
        rows=2, cols=1, row_heights=[top, 300], vertical_spacing=80 / (top + 380)
    )
    figure.add_traces([*means.data, *dots.data], rows=1, cols=1)
    figure.update_traces(showlegend=False)
    figure.add_traces(costs.data, rows=2, cols=1)
    short = {as_text(name): shorten(name, MAX_TICK_LETTERS) for name in table["strategy"]}
    figure.update_yaxes(
        type="category", labelalias=short, dtick=1, autorange="reversed", automargin=True,
        row=1, col=1,
    )  # fmt: skip
    figure.update_xaxes(title_text="Test accuracy", tickformat=".1%", nticks=6, row=1, col=1)
    figure.update_xaxes(title_text="Training time (seconds)", row=2, col=1)
    figure.update_xaxes(type="log", tickformat=",~g", row=2, col=1)
    figure.update_yaxes(title_text="Test accuracy", tickformat=".1%", row=2, col=1)
    title = "Test accuracy per seed, with mean and 95 % interval, and by training time"
    return _finish(figure, title, 480 + top, table)


def compared_curves(histories: pd.DataFrame, table: pd.DataFrame) -> go.Figure:
    """Return validation loss and accuracy by epoch: bold the mean over seeds, faint each seed.

    A mean ends where the first of its seeds ends. `table` gives the order of strategies.
    """
    look = _look(table) | {"line_dash": "strategy", "line_dash_sequence": DASHES}
    histories = histories.assign(strategy=histories["strategy"].map(as_text))
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    for row, (metric, title) in enumerate(CURVES.items(), start=1):
        by_seed = histories.pivot(index=["strategy", "epoch"], columns="seed", values=metric)
        means = by_seed.mean(axis=1, skipna=False).dropna().rename(metric).reset_index()
        bold = px.line(
            means, "epoch", metric, symbol="strategy", symbol_sequence=SYMBOLS, markers=True, **look
        )
        faint = px.line(histories, "epoch", metric, line_group="seed", hover_data="seed", **look)
        bold.update_traces(line={"width": 3}, marker={"size": 7}, showlegend=row == 1)
        faint.update_traces(line={"width": 1}, opacity=0.5, showlegend=False)
        figure.add_traces([*faint.data, *bold.data], rows=row, cols=1)
        figure.update_yaxes(title_text=title, row=row, col=1)
    epochs = max([1, *histories["epoch"]])
    figure.update_xaxes(range=[0.5, epochs + 0.5], tick0=1, dtick=max(1, epochs // 6))
    figure.update_xaxes(title_text="Epoch", row=2, col=1)
    figure.update_yaxes(tickformat=".0%", row=2, col=1)
    title = "Validation loss and accuracy: mean over seeds (bold) and each seed (faint)"
    return _finish(figure, title, 620, table)


def _look(table: pd.DataFrame) -> dict[str, Any]:
    """Return arguments of Plotly Express that give a strategy its color in every figure.

    No two of the first 168 strategies have color, symbol and dash in common.
    """
    order = {"strategy": [as_text(name) for name in table["strategy"]]}
    return {"color": "strategy", "color_discrete_sequence": COLORS, "category_orders": order}


def _finish(figure: go.Figure, title: str, height: int, table: pd.DataFrame) -> go.Figure:
    """Add a legend with one line per strategy below the plots."""
    short = {as_text(name): shorten(name, MAX_LEGEND_LETTERS) for name in table["strategy"]}
    figure.for_each_trace(lambda trace: trace.update(name=short[trace.name]))
    return finish(figure, title, **legend_below(height, len(table)))
