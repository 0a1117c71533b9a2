"""Draw the trials of a sweep: their history, the importance of parameters, their values."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
import pandas as pd
import plotly.graph_objects as go

from thawline.reports.figures.style import TRAIN, VALIDATION, empty_figure, finish

COMPLETE = optuna.trial.TrialState.COMPLETE


def optimization_history(trials: pd.DataFrame, monitor: str) -> go.Figure:
    """Return the best epoch of each trial, and the best of the complete trials so far.

    Args:
        trials: the table of `study.trial_table`.
        monitor: val_accuracy or val_loss.
    """
    figure = go.Figure()
    for state, name, color in (("pruned", "pruned", "silver"), ("complete", "complete", TRAIN)):
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
    return finish(
        figure,
        f"Optimization history: {monitor} of each trial's best epoch",
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.1},
    )


def importance(study: optuna.Study, monitor: str) -> go.Figure:
    """Return the importance of each parameter of the search (PED-ANOVA, arXiv:2304.10255)."""
    values = {trial.value for trial in study.get_trials(states=(COMPLETE,))}
    if len(values) < 2:  # noqa: PLR2004
        return empty_figure(
            f"Parameter importance needs two complete trials that differ in {monitor}"
        )
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
    figure.update_xaxes(title_text="Share of the variance", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", automargin=True)
    return finish(figure, f"Parameter importance for {monitor}")


def parallel_coordinates(study: optuna.Study, monitor: str) -> go.Figure:
    """Return one line per complete trial, through its parameters to its result."""
    trials = study.get_trials(states=(COMPLETE,))
    if not trials:
        return empty_figure("No trial is complete")
    ranges = {name: kind for trial in trials for name, kind in trial.distributions.items()}
    axes = [
        _axis(name, [trial.params.get(name) for trial in trials], getattr(kind, "log", False))
        for name, kind in ranges.items()
    ]
    results = [trial.value for trial in trials]
    shades = [[0, "gainsboro"], [1, TRAIN]]
    if study.direction == optuna.study.StudyDirection.MINIMIZE:
        shades = [[0, TRAIN], [1, "gainsboro"]]
    line = {"color": results, "colorscale": shades}
    figure = go.Figure(
        go.Parcoords(dimensions=[*axes, _axis(monitor, results)], line=line, labelangle=-20)
    )
    margin = {"l": 120, "r": 90, "t": 160}
    return finish(figure, "Parameters and results of complete trials", margin=margin)


def _axis(label: str, values: Sequence[Any], log: bool = False) -> dict[str, Any]:
    """Return an axis of parallel coordinates, with "not set" at its lower end."""
    if not all(type(value) in {int, float, type(None)} for value in values):
        names = sorted({str(value) for value in values})
        places = [names.index(str(value)) for value in values]
        return {"label": label, "values": places, "tickvals": [*range(len(names))],
                "ticktext": names, "range": [-0.1, len(names) - 0.9]}  # fmt: skip
    numbers = np.array([math.nan if value is None else value for value in values], dtype=float)
    numbers = np.log10(numbers) if log else numbers
    low, high = np.nanmin(numbers), np.nanmax(numbers)
    ticks = np.linspace(low, high, 5) if high > low else np.array([low])
    texts = [f"{10**tick if log else tick:.3g}" for tick in ticks]
    if np.isnan(numbers).any():
        absent = low - 0.2 * (high - low or 1)
        numbers = np.nan_to_num(numbers, nan=absent)
        ticks, texts = np.array([absent, *ticks]), ["not set", *texts]
    return {"label": label, "values": numbers, "tickvals": ticks, "ticktext": texts}
