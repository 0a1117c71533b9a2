"""Draw strategies side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.evaluation.comparison import TrainingOutcome, format_seconds, group_by_strategy
from thawline.reports.figures.style import COLORS, LINE, MAX_TICK_LETTERS, as_text, finish, shorten

FAINT = "88"  # appended to a color: half opaque
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon")
DASHES = ("solid", "dash", "dot")
ROW = 40  # px, height of a strategy
MAX_LEGEND_LETTERS = 24  # of a strategy's name
CURVES = {"val_loss": "Validation loss", "val_accuracy": "Validation accuracy"}


class Style(NamedTuple):
    """How a strategy looks in every figure."""

    color: str
    symbol: str
    dash: str


def compared_accuracy(trials: Sequence[TrainingOutcome], table: pd.DataFrame) -> go.Figure:
    """Return test accuracy per seed, with mean and 95 % interval per strategy, best on top.

    Args:
        trials: the trainings.
        table: of `comparison.compare`.
    """
    figure = make_subplots()
    _draw_accuracies(figure, trials, table)
    title = "Test accuracy per seed, with mean and 95 % interval"
    return finish(figure, title, height=130 + ROW * len(table), showlegend=False)


def cost_against_accuracy(table: pd.DataFrame) -> go.Figure:
    """Return mean test accuracy by seconds of training, one point per strategy of `table`."""
    figure = make_subplots()
    _draw_costs(figure, table, showlegend=True)
    return finish(figure, "Test accuracy by training time", **_legend_below(360, table))


def compared_curves(trials: Sequence[TrainingOutcome], table: pd.DataFrame) -> go.Figure:
    """Return validation loss and accuracy by epoch: bold the mean over seeds, faint each seed.

    A mean ends where the first of its seeds ends. `table` gives the order of strategies.
    """
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.06)
    _draw_curves(figure, trials, table, cells=((1, 1), (2, 1)))
    figure.update_xaxes(title_text=None, row=1, col=1)
    title = "Validation loss and accuracy: mean over seeds (bold) and each seed (faint)"
    return finish(figure, title, **_legend_below(620, table))


def comparison_figure(trials: Sequence[TrainingOutcome], table: pd.DataFrame) -> go.Figure:
    """Return accuracy, cost and validation curves of the strategies in one figure."""
    figure = make_subplots(
        rows=2,
        cols=2,
        horizontal_spacing=0.12,
        vertical_spacing=0.14,
        subplot_titles=(
            "Test accuracy per seed, mean, 95 % interval",
            "Test accuracy by training time",
            *CURVES.values(),
        ),
    )
    _draw_accuracies(figure, trials, table, row=1, col=1)
    _draw_costs(figure, table, showlegend=False, row=1, col=2)
    _draw_curves(figure, trials, table, cells=((2, 1), (2, 2)))
    return finish(figure, "Strategies compared", **_legend_below(700 + ROW * len(table), table))


def _legend_below(height: int, table: pd.DataFrame) -> dict[str, Any]:
    """Return the layout of a figure with one line per strategy below its plots."""
    legend = round(1.4 * LINE * len(table))
    return {
        "height": height + legend,
        "margin": {"b": 70 + legend},
        "legend": {"yref": "container", "y": 0, "yanchor": "bottom", "x": 0},
    }


def _styles(table: pd.DataFrame) -> dict[str, Style]:
    """Return a style for each strategy, no two alike up to 168 of them."""
    return {
        name: Style(
            COLORS[idx % len(COLORS)],
            SYMBOLS[idx % len(SYMBOLS)],
            DASHES[idx // len(COLORS) % len(DASHES)],
        )
        for idx, name in enumerate(table["strategy"])
    }


def _named(strategy: str) -> dict[str, str]:
    """Return a trace's name, which fits a legend, its group, and the full name for its hover."""
    name = shorten(strategy, MAX_LEGEND_LETTERS)
    return {"name": name, "legendgroup": as_text(strategy), "meta": as_text(strategy)}


def _draw_accuracies(
    figure: go.Figure, trials: Sequence[TrainingOutcome], table: pd.DataFrame, **cell: int
) -> None:
    styles, groups = _styles(table), group_by_strategy(trials)
    for place, row in enumerate(table.to_dict("records")):
        color, group = styles[row["strategy"]].color, groups[row["strategy"]]
        mean, low, high = (row[f"test_accuracy{end}"] for end in ("", "_low", "_high"))
        figure.add_scatter(
            x=[mean],
            y=[place],
            error_x={"array": [high - mean], "arrayminus": [mean - low], "color": color},
            mode="markers",
            marker={"symbol": "line-ns", "size": 20, "line": {"width": 3, "color": color}},
            customdata=[[low, high]],
            hovertemplate="%{x:.2%}, 95 % interval %{customdata[0]:.2%} to %{customdata[1]:.2%}"
            "<extra>%{meta}</extra>",
            showlegend=False,
            **_named(row["strategy"]),
            **cell,
        )
        figure.add_scatter(
            x=[trial.metrics["test_accuracy"] for trial in group],
            y=[place] * len(group),
            mode="markers",
            marker={"color": color, "size": 9, "opacity": 0.7},
            customdata=[trial.seed for trial in group],
            hovertemplate="%{x:.2%}<extra>%{meta}, seed %{customdata}</extra>",
            showlegend=False,
            **_named(row["strategy"]),
            **cell,
        )
    names = [shorten(name, MAX_TICK_LETTERS) for name in table["strategy"]]
    figure.update_yaxes(tickvals=[*range(len(names))], ticktext=names, automargin=True, **cell)
    figure.update_yaxes(range=[len(names) - 0.5, -0.5], zeroline=False, **cell)
    figure.update_xaxes(title_text="Test accuracy", tickformat=".1%", nticks=6, **cell)


def _draw_costs(figure: go.Figure, table: pd.DataFrame, showlegend: bool, **cell: int) -> None:
    styles = _styles(table)
    for row in table.to_dict("records"):
        style = styles[row["strategy"]]
        figure.add_scatter(
            x=[max(row["seconds"], 0.01)],  # a logarithmic axis has no 0
            y=[row["test_accuracy"]],
            mode="markers",
            marker={"color": style.color, "symbol": style.symbol, "size": 13},
            customdata=[[format_seconds(row["seconds"]), f"{row['trainable_parameters']:,}"]],
            hovertemplate="%{y:.2%}, %{customdata[0]}, %{customdata[1]} trainable parameters"
            "<extra>%{meta}</extra>",
            showlegend=showlegend,
            **_named(row["strategy"]),
            **cell,
        )
    figure.update_xaxes(title_text="Training time (mean seconds)", **cell)
    figure.update_xaxes(type="log", tickformat=",~g", **cell)
    figure.update_yaxes(title_text="Test accuracy", tickformat=".1%", **cell)


def _draw_curves(
    figure: go.Figure,
    trials: Sequence[TrainingOutcome],
    table: pd.DataFrame,
    cells: Sequence[tuple[int, int]],
) -> None:
    epochs = max(1, *(len(trial.history) for trial in trials))
    for (metric, title), (row, col) in zip(CURVES.items(), cells, strict=True):
        for name, style in _styles(table).items():
            group = group_by_strategy(trials)[name]
            figure.add_traces(_curves(group, metric, style), rows=row, cols=col)
        figure.update_yaxes(title_text=title, row=row, col=col)
        figure.update_xaxes(title_text="Epoch", dtick=max(1, epochs // 6), row=row, col=col)
        figure.update_xaxes(range=[0.5, epochs + 0.5], tick0=1, row=row, col=col)
        if metric == "val_accuracy":
            figure.update_yaxes(tickformat=".0%", row=row, col=col)


def _curves(trials: Sequence[TrainingOutcome], metric: str, style: Style) -> list[go.Scatter]:
    """Return a faint curve for each training of a strategy, and a bold one of their mean."""
    named = _named(trials[0].strategy)
    histories = [trial.history.set_index("epoch")[metric] for trial in trials]
    faint = [
        go.Scatter(
            x=history.index,
            y=history,
            mode="lines",
            line={"color": style.color + FAINT, "width": 1, "dash": style.dash},
            showlegend=False,
            hovertemplate=f"%{{y:.4f}}<extra>%{{meta}}, seed {trial.seed}</extra>",
            **named,
        )
        for trial, history in zip(trials, histories, strict=True)
    ]
    mean = pd.concat(histories, axis=1, join="inner").mean(axis=1)
    bold = go.Scatter(
        x=mean.index,
        y=mean,
        mode="lines+markers",
        line={"color": style.color, "width": 3, "dash": style.dash},
        marker={"symbol": style.symbol, "size": 7},
        showlegend=metric == "val_loss",
        hovertemplate="%{y:.4f}<extra>%{meta}, mean</extra>",
        **named,
    )
    return [*faint, bold]
