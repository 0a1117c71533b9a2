"""Draw the trials of a sweep: their history, the importance of parameters, their values."""

import optuna
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from thawline.reports.figures.style import TRAIN, VALIDATION, empty_figure, finish

COMPLETE = optuna.trial.TrialState.COMPLETE


def optimization_history(trials: pd.DataFrame, monitor: str) -> go.Figure:
    """Return the best epoch of each trial of `trial_table`, and the best complete one so far."""
    colors = {"complete": TRAIN, "pruned": "silver"}
    figure = px.scatter(trials, "trial", monitor, color="state", color_discrete_map=colors)
    complete = trials[trials["state"] == "complete"].set_index("trial")[monitor]
    best = complete.cummax() if monitor == "val_accuracy" else complete.cummin()
    line = {"color": VALIDATION, "shape": "hv"}
    figure.add_scatter(x=best.index, y=best, name="best so far", mode="lines", line=line)
    return finish(figure, f"Optimization history: {monitor} of each trial's best epoch")


def importance(study: optuna.Study, monitor: str) -> go.Figure:
    """Return the importance of each parameter of the search (PED-ANOVA, arXiv:2304.10255)."""
    values = {trial.value for trial in study.get_trials(states=(COMPLETE,))}
    if len(values) < 2:  # noqa: PLR2004
        return empty_figure(
            f"Parameter importance needs two complete trials that differ in {monitor}"
        )
    figure = optuna.visualization.plot_param_importances(study, target_name=monitor)
    figure.update_traces(marker_color=TRAIN, texttemplate="%{x:.0%}")
    figure.update_xaxes(title_text="Share of the variance", tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(title_text=None, automargin=True)
    return finish(figure, f"Parameter importance for {monitor}")


def parallel_coordinates(study: optuna.Study, monitor: str) -> go.Figure:
    """Return one line per complete trial, through its parameters to its result."""
    trials = study.get_trials(states=(COMPLETE,))
    if not trials:
        return empty_figure("No trial is complete")
    figure = optuna.visualization.plot_parallel_coordinate(study, target_name=monitor)
    names = sorted({name for trial in trials for name in trial.params})
    figure.update_xaxes(ticktext=[monitor, *names])  # in full, which Optuna shortens
    return finish(figure, "Parameters and results of complete trials")
