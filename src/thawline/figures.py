"""Draw every figure, in one style."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

TRAIN, VALIDATION = "#0072b2", "#d55e00"  # Okabe and Ito's palette, safe for colour-blind readers
LINE = 16  # px
COMPLETE = optuna.trial.TrialState.COMPLETE
MOST_NUMBERED = 30  # classes up to which a cell of the confusion matrix has its number written in


def learning_curves(history: pd.DataFrame, best_epoch: int) -> go.Figure:
    """Return loss and accuracy by epoch, with the best epoch marked and a band for every phase."""
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("Loss (nats)", "Accuracy"), horizontal_spacing=0.1
    )
    for column, metric in enumerate(("loss", "accuracy"), start=1):
        for split, name, colour in (
            ("train", "training", TRAIN),
            ("val", "validation", VALIDATION),
        ):
            figure.add_scatter(
                x=history["epoch"],
                y=history[f"{split}_{metric}"],
                name=name,
                mode="lines+markers",
                line={"color": colour},
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
            fillcolor="grey",
            opacity=0.05 if number % 2 else 0.15,
            line_width=0,
            annotation={"text": str(number), "font": {"size": 11, "color": "dimgrey"}},
            annotation_position="bottom right",
        )
    if best_epoch:
        figure.add_vline(x=best_epoch, line={"dash": "dot", "color": "grey"})
    figure.update_xaxes(title_text="Epoch", dtick=max(1, len(history) // 10))
    figure.update_yaxes(rangemode="tozero", row=1, col=1)
    phases = history.drop_duplicates("phase")
    figure.add_annotation(
        text="<br>".join(
            f"{row.phase}: {row.trainable_parameters:,} parameters trained, above {row.thaw_line}"
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
    return figure.update_layout(
        title={"text": f"Learning curves (bands: phases; dotted: best epoch, {best_epoch})"},
        template="plotly_white",
        height=480 + LINE * len(phases),
        margin={"b": 90 + LINE * len(phases)},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.15},
    )


def stage_probes(probes: pd.DataFrame) -> go.Figure:
    """Return the accuracy of a linear probe on each stage, with its standard error."""
    if probes.empty:
        return go.Figure(layout={"title": {"text": "Stages are probed where auto.by is probe"}})
    figure = go.Figure(
        go.Scatter(
            x=probes["stage"],
            y=probes["accuracy"],
            error_y={"type": "data", "array": probes["standard_error"]},
            mode="lines+markers",
            line={"color": TRAIN},
            customdata=probes["features"],
            hovertemplate="%{x}: %{y:.3f}, %{customdata} features<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="Stage, from the input on", type="category")
    figure.update_yaxes(title_text="Accuracy ± standard error")
    return figure.update_layout(
        title={"text": "Accuracy of a linear probe on each stage (cross-validated)"},
        template="plotly_white",
    )


def lr_curve(sweep: pd.DataFrame, suggested: float, current: float) -> go.Figure:
    """Return the loss by learning rate, with the suggested and the current rate marked."""
    figure = go.Figure()
    figure.add_scatter(
        x=sweep["lr"], y=sweep["loss"], name="batch", mode="markers",
        marker={"color": "lightgrey", "size": 5},
    )  # fmt: skip
    figure.add_scatter(
        x=sweep["lr"], y=sweep["smoothed"], name="smoothed", mode="lines", line={"color": TRAIN}
    )
    highest = 1.5 * float(sweep["smoothed"].iloc[: max(1, len(sweep) // 2)].max())
    for rate, name, colour in (
        (suggested, "suggested", VALIDATION),
        (current, "of the strategy", "grey"),
    ):
        figure.add_scatter(
            x=[rate, rate],
            y=[0, highest],
            name=f"{name}: {rate:.2g}",
            mode="lines",
            line={"color": colour, "dash": "dash"},
        )
    figure.update_xaxes(
        title_text="Learning rate of the head", type="log", dtick=1, exponentformat="power"
    )
    figure.update_yaxes(title_text="Loss (nats)", range=[0, highest])
    return figure.update_layout(
        title={"text": "Loss while the learning rate rises"},
        template="plotly_white",
        legend={"orientation": "h", "y": -0.2},
    )


def confusion_matrix(confusion: pd.DataFrame) -> go.Figure:
    """Return counts of true against predicted classes, coloured by the share of the true class."""
    share = confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0)
    numbered = len(confusion) <= MOST_NUMBERED
    figure = go.Figure(
        go.Heatmap(
            z=share.to_numpy(),
            x=list(confusion.columns),
            y=list(confusion.index),
            customdata=confusion.to_numpy(),
            texttemplate="%{customdata}" if numbered else None,
            hovertemplate="true %{y}, predicted %{x}: %{customdata} (%{z:.1%})<extra></extra>",
            colorscale="Blues",
            zmin=0,
            zmax=1,
            colorbar={"title": {"text": "share of<br>true class"}, "tickformat": ".0%"},
        )
    )
    figure.update_xaxes(title_text="Predicted class", type="category")
    figure.update_yaxes(title_text="True class", type="category", autorange="reversed")
    return figure.update_layout(
        title={"text": "Confusion matrix of the test split"}, template="plotly_white"
    )


def sweep_history(trials: pd.DataFrame, monitor: str) -> go.Figure:
    """Return what each trial reached in its best epoch, and the best of the complete ones so far.

    Args:
        trials: the table of `sweeping.trial_table`.
        monitor: val_accuracy, of which more is better, or val_loss.
    """
    figure = go.Figure()
    for state, name, colour in (
        ("pruned", "stopped early", "silver"),
        ("complete", "complete", TRAIN),
    ):
        rows = trials[trials["state"] == state]
        figure.add_scatter(
            x=rows["trial"], y=rows[monitor], name=name, mode="markers", marker={"color": colour}
        )
    complete = trials[trials["state"] == "complete"]
    values = complete[monitor]
    figure.add_scatter(
        x=complete["trial"],
        y=values.cummax() if monitor == "val_accuracy" else values.cummin(),
        name="best so far",
        mode="lines",
        line={"color": VALIDATION, "shape": "hv"},
    )
    figure.update_xaxes(title_text="Trial")
    figure.update_yaxes(title_text=monitor)
    return figure.update_layout(
        title={"text": "Trials by their best epoch"},
        template="plotly_white",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.1},
    )


def importance(study: optuna.Study, monitor: str) -> go.Figure:
    """Return how much each parameter that was tried mattered (PED-ANOVA, arXiv:2304.10255)."""
    values = {trial.value for trial in study.get_trials(states=(COMPLETE,))}
    if len(values) < 2:  # noqa: PLR2004
        title = f"No two complete trials differ in {monitor}: nothing can be said on importance"
        return go.Figure(layout={"title": {"text": title}, "template": "plotly_white"})
    shares = optuna.importance.get_param_importances(study)
    figure = go.Figure(
        go.Bar(
            x=[*shares.values()],
            y=[*shares],
            orientation="h",
            texttemplate="%{x:.0%}",
            marker={"color": TRAIN},
        )
    )
    figure.update_xaxes(title_text="Share", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure.update_layout(
        title={"text": f"What mattered for {monitor}"}, template="plotly_white"
    )


def parallel_coordinates(study: optuna.Study, monitor: str) -> go.Figure:
    """Return a line for each complete trial through what it tried, to what it reached."""
    trials = study.get_trials(states=(COMPLETE,))
    if not trials:
        title = "No trial is complete"
        return go.Figure(layout={"title": {"text": title}, "template": "plotly_white"})
    ranges = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    axes = [
        _axis(name, [trial.params.get(name) for trial in trials], getattr(kind, "log", False))
        for name, kind in ranges.items()
    ]
    reached = [trial.value for trial in trials]
    shades = [[0, "gainsboro"], [1, TRAIN]]
    if study.direction == optuna.study.StudyDirection.MINIMIZE:
        shades = [[0, TRAIN], [1, "gainsboro"]]
    line = {"color": reached, "colorscale": shades}
    figure = go.Figure(
        go.Parcoords(dimensions=[*axes, _axis(monitor, reached)], line=line, labelangle=-20)
    )
    return figure.update_layout(
        title={"text": "What complete trials tried, and reached"},
        template="plotly_white",
        margin={"l": 120, "r": 90, "t": 160},
    )


def _axis(label: str, values: Sequence[Any], log: bool = False) -> dict[str, Any]:
    """Return an axis of parallel coordinates; what a trial did not try lies at its lower end."""
    if not all(type(value) in {int, float, type(None)} for value in values):
        names = sorted({str(value) for value in values})
        places = [names.index(str(value)) for value in values]
        return {"label": label, "values": places, "tickvals": [*range(len(names))],
                "ticktext": names, "range": [-0.1, len(names) - 0.9]}  # fmt: skip
    tried = np.array([math.nan if value is None else value for value in values], dtype=float)
    tried = np.log10(tried) if log else tried
    low, high = np.nanmin(tried), np.nanmax(tried)
    ticks = np.linspace(low, high, 5) if high > low else np.array([low])
    texts = [f"{10**tick if log else tick:.3g}" for tick in ticks]
    if np.isnan(tried).any():
        absent = low - 0.2 * (high - low or 1)
        tried = np.nan_to_num(tried, nan=absent)
        ticks, texts = np.array([absent, *ticks]), ["not tried", *texts]
    return {"label": label, "values": tried, "tickvals": ticks, "ticktext": texts}
