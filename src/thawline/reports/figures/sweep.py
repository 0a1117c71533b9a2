"""Draw what a sweep has tried, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go

from thawline.reports.figures.style import TRAIN, VALIDATION

COMPLETE = optuna.trial.TrialState.COMPLETE


def optimization_history(trials: pd.DataFrame, monitor: str) -> go.Figure:
    """Return what each trial reached in its best epoch, and the best of the complete ones so far.

    Args:
        trials: the table of `sweeping.trial_table`.
        monitor: val_accuracy, of which more is better, or val_loss.
    """
    figure = go.Figure()
    for state, name, color in (
        ("pruned", "stopped early", "silver"),
        ("complete", "complete", TRAIN),
    ):
        rows = trials[trials["state"] == state]
        figure.add_scatter(
            x=rows["trial"], y=rows[monitor], name=name, mode="markers", marker={"color": color}
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
