"""Nodes of sweeps."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import yaml

from thawline.options import TRAINING_GROUPS, Parameters
from thawline.pipelines.finetune import nodes as finetune
from thawline.pipelines.types import FrozenTrial, OnEpoch, OpenRun, TrainingResult

logger = logging.getLogger(__name__)


def drop_test_split(splits: pd.DataFrame) -> pd.DataFrame:
    """Return the splits without the test images: no trial can look at what is not there."""
    return splits[splits["split"] != "test"].reset_index(drop=True)


def run_sweep(
    parameters: Parameters,
    development_splits: pd.DataFrame,
    activations: Path,
    sweep_storage: Path,
    child_runs: OpenRun,
    metric_logger: OnEpoch,
) -> tuple[str, list[FrozenTrial]]:
    """Run the trials that are still to be run; return the study's name and all finished trials."""
    import optuna

    from thawline.sweep import study as sweeping
    from thawline.sweep.storage import open_storage

    url = parameters.sweep.storage
    storage = open_storage(url.get_secret_value() if url else f"sqlite:///{sweep_storage}")
    study = sweeping.open_study(storage, parameters, development_splits)

    def train(number: int, values: dict[str, Any], chosen: Parameters, on_epoch: OnEpoch) -> None:
        def track(row: dict[str, Any], epoch: int) -> None:
            metric_logger(row, epoch)
            on_epoch(row, epoch)

        tags = {"study": study.study_name, "trial": number, "strategy": chosen.strategy}
        state = "complete"
        with child_runs(f"trial {number}", values, tags) as set_tags:
            try:
                result = train_trial(chosen, development_splits, activations, track)
                if result.best_epoch:
                    best = result.history["val_accuracy"].iloc[result.best_epoch - 1]
                    metric_logger({"best_val_accuracy": best}, result.best_epoch)
            except optuna.TrialPruned:
                state = "pruned"  # raised again below: the child run has not failed
            set_tags({"state": state})
        if state == "pruned":
            raise optuna.TrialPruned

    package = logging.getLogger("thawline")
    level = package.level
    sweeping.logger.setLevel(package.getEffectiveLevel())
    package.setLevel(logging.WARNING)  # a trial is one line of the log, instead of a page
    try:
        sweeping.run_trials(study, parameters, train)
    finally:
        package.setLevel(level)
    return study.study_name, study.get_trials(states=sweeping.FINISHED)


def train_trial(
    parameters: Parameters, splits: pd.DataFrame, activations: Path, on_epoch: OnEpoch
) -> TrainingResult:
    """Train once, as the pipeline finetune does with these parameters."""
    from thawline.thaw.cache import ActivationCache
    from thawline.training import loop, setup

    image_transforms = finetune.build_transforms(parameters)
    network, _ = finetune.build_model(parameters, splits, image_transforms)
    choice, *_, network, image_transforms = finetune.choose_strategy(
        parameters, network, splits, image_transforms, activations
    )
    if choice.result:
        choice.result.report(on_epoch)
        return choice.result
    cache = ActivationCache(activations, parameters.activations.max_gb)
    arguments = choice.parameters, network, splits, image_transforms, cache
    return loop.train(setup.prepare(*arguments), choice.parameters.phases, on_epoch=on_epoch)


def select_best_trial(
    study: str, finished_trials: list[FrozenTrial], parameters: Parameters
) -> str:
    """Return the parameters of the best trial, as the YAML of a Kedro environment.

    All are there that a training depends on, not only those that were tried: the run may have had
    others by --params or from conf/local, and conf/base may change.
    """
    from thawline.sweep import study as sweeping
    from thawline.sweep.space import with_values

    best = sweeping.best_trial(finished_trials, parameters.training.monitor)
    chosen = with_values(parameters, best.params)
    tree = chosen.model_dump(mode="json", include={*TRAINING_GROUPS, "dataset", "screening"})
    if chosen.strategy in tree["strategies"]:
        tree["strategies"] = {chosen.strategy: tree["strategies"][chosen.strategy]}
    figures_of_best = ", ".join(
        f"{name} {best.user_attrs[name]:.4f}" for name in ("val_accuracy", "val_loss")
    )
    logger.info("Best is trial %d: %s; see conf/best", best.number, figures_of_best)
    return (
        f"# Trial {best.number} of the study {study}: {figures_of_best}. Written by the pipeline\n"
        "# sweep, which replaces it. kedro run --env=best --pipeline=finetune repeats the trial.\n"
        f"# It tried {', '.join(best.params)}.\n"
        + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    )


def report_sweep(
    finished_trials: list[FrozenTrial], parameters: Parameters
) -> tuple[pd.DataFrame, go.Figure, go.Figure, go.Figure]:
    """Return the table of trials, their course, what mattered, and which values went together."""
    import optuna

    from thawline.reports.figures import sweep as figures
    from thawline.sweep import study as sweeping

    study = optuna.create_study(direction=sweeping.direction(parameters))
    study.add_trials(finished_trials)
    table, monitor = sweeping.trial_table(finished_trials), parameters.training.monitor
    return (
        table,
        figures.optimization_history(table, monitor),
        figures.importance(study, monitor),
        figures.parallel_coordinates(study, monitor),
    )
