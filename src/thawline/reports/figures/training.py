"""Draw learning curves, what a strategy was chosen by, and the learning-rate range test."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from thawline.reports.figures.style import (
    COLORS,
    LINE,
    TRAIN,
    VALIDATION,
    as_text,
    empty_figure,
    finish,
)

MARGIN = 0.02  # of accuracy, around what auto tried


def learning_curves(history: pd.DataFrame, best_epoch: int) -> go.Figure:
    """Return loss and accuracy by epoch, with the best epoch marked and a band for every phase."""
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("Loss (nats)", "Accuracy"), horizontal_spacing=0.1
    )
    for column, metric in enumerate(("loss", "accuracy"), start=1):
        for split, name, color in (("train", "training", TRAIN), ("val", "validation", VALIDATION)):
            figure.add_scatter(
                x=history["epoch"],
                y=history[f"{split}_{metric}"],
                name=name,
                mode="lines+markers",
                line={"color": color},
                legendgroup=name,
                showlegend=column == 1,
                row=1,
                col=column,
            )
    for number in history["phase"].unique():
        rows = history[history["phase"] == number]
        figure.add_vrect(
            x0=rows["epoch"].min() - 0.5,
            x1=rows["epoch"].max() + 0.5,
            fillcolor="gray",
            opacity=0.05 if number % 2 else 0.15,
            line_width=0,
            annotation={"text": str(number), "font": {"size": 11, "color": "dimgray"}},
            annotation_position="bottom right",
        )
    if best_epoch:
        figure.add_vline(x=best_epoch, line={"dash": "dot", "color": "gray"})
    figure.update_xaxes(title_text="Epoch", tick0=1, dtick=max(1, -(-len(history) // 6)))
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    phases = history.drop_duplicates("phase")
    figure.add_annotation(
        text="<br>".join(
            f"Phase {row.phase}: {row.trainable_parameters:,} trainable parameters,<br>"
            f"above {as_text(str(row.thaw_line))}"
            for row in phases.itertuples()
        ),
        align="left",
        showarrow=False,
        x=0,
        xref="paper",
        y=0,
        yref="paper",
        yshift=-75,
        yanchor="top",
    )
    return finish(
        figure,
        f"Learning curves (bands: phases; dotted: best epoch, {best_epoch})",
        height=480 + 2 * LINE * len(phases),
        margin={"b": 90 + 2 * LINE * len(phases)},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.15},
    )


def regularization_path(path: Sequence[Mapping[str, float]]) -> go.Figure:
    """Return cross-validated loss and accuracy of a linear head by C, with the chosen C marked."""
    table = pd.DataFrame(path).rename(columns={"loss": "loss (nats)"})
    figure = px.line(
        table, "C", ["accuracy", "loss (nats)"], log_x=True, markers=True,
        labels={"C": "C, the inverse of regularization", "value": "", "variable": ""},
        color_discrete_sequence=COLORS,
    )  # fmt: skip
    best = min(path, key=itemgetter("loss"))["C"]
    figure.add_vline(x=best, line={"dash": "dot", "color": "gray"})
    figure.update_yaxes(rangemode="tozero")
    return finish(figure, f"Linear head, cross-validated (dotted: chosen C, {best:g})")


def candidates_figure(tried: pd.DataFrame) -> go.Figure:
    """Return validation accuracy by seconds of what auto tried."""
    if tried.empty:
        return empty_figure("The strategy was named: nothing was tried for it")
    figure = px.scatter(
        tried.assign(size=tried["size"].astype(str) + " px"),
        "seconds", "val_accuracy", color="strategy", symbol="size",
        hover_data=["trainable", "cv_accuracy"], color_discrete_sequence=COLORS,
        labels={"seconds": "Seconds", "val_accuracy": "Validation accuracy", "size": "Input"},
    )  # fmt: skip
    figure.update_traces(marker={"size": 12})
    accuracies = tried["val_accuracy"]
    figure.update_yaxes(range=[accuracies.min() - MARGIN, min(1, accuracies.max()) + MARGIN])
    return finish(figure, "What auto tried: validation accuracy and seconds")


def stage_contributions(contributions: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return the accuracy that a linear head loses without the features of each stage."""
    if not contributions:
        return empty_figure("No stage contributions: no head was fitted by lbfgs")
    figure = px.bar(
        pd.DataFrame(contributions), "stage", "accuracy_lost", hover_data="features",
        labels={"stage": "Stage, from input to output", "accuracy_lost": "Accuracy lost"},
        color_discrete_sequence=COLORS,
    )  # fmt: skip
    figure.update_xaxes(type="category")
    return finish(figure, "Accuracy that the linear head loses without a stage (cross-validated)")


def lr_curve(sweep: pd.DataFrame, suggested: float, current: float) -> go.Figure:
    """Return the loss by learning rate, with the suggested and the current rate marked."""
    highest = 1.5 * float(sweep["smoothed"].iloc[: max(1, len(sweep) // 2)].max())
    figure = px.line(
        sweep, "lr", ["loss", "smoothed"], log_x=True, range_y=[0, highest],
        labels={"lr": "Learning rate of the head", "value": "Loss (nats)", "variable": ""},
        color_discrete_map={"loss": "lightgray", "smoothed": TRAIN},
    )  # fmt: skip
    figure.update_traces(selector={"name": "loss"}, name="batch", mode="markers")
    for rate, name, color in (
        (suggested, "suggested", VALIDATION),
        (current, "of the strategy", "gray"),
    ):
        figure.add_scatter(
            x=[rate, rate],
            y=[0, highest],
            name=f"{name}: {rate:.2g}",
            mode="lines",
            line={"color": color, "dash": "dash"},
        )
    figure.update_xaxes(dtick=1, exponentformat="power")
    title = "Learning-rate range test: training loss at rising rates"
    return finish(figure, title, legend={"orientation": "h", "y": -0.2})
