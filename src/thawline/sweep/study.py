"""Search for good parameters with Optuna: what may be tried, the study, and its trials."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from thawline.data.sources import hash_files
from thawline.errors import ParameterError, TrainingError, did_you_mean
from thawline.networks.building import is_weights_file
from thawline.options import (
    AUTO,
    TRAINING_GROUPS,
    Dimension,
    Parameters,
    SweepOptions,
    flatten,
    validate_parameters,
)
from thawline.sweep.storage import heartbeat, no_experimental_warnings, retry_dead
from thawline.training.loop import OnEpoch, progress_bar, score

logger = logging.getLogger(__name__)

WITHOUT_EFFECT = ("training.resume", "training.num_workers", "training.device")
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)

Train = Callable[[int, dict[str, Any], Parameters, OnEpoch], None]


def check_space(parameters: Parameters) -> None:
    """Find out before the first trial what in `sweep.space` cannot be tried.

    Raises:
        ParameterError: naming, for every problem at once, the parameter and the reason.
    """
    problems = []
    if parameters.training.epochs == 0:
        problems.append("training.epochs: 0 leaves nothing to compare; give at least 1, or null")
    for name, dimension in _dimensions(parameters).items():
        if reason := _refusal(name):
            problems.append(f"{name}: {reason}")
            continue
        for value in _samples(dimension):
            problems += _problems(parameters, {name: value})
        known = [*parameters.strategies, AUTO]
        problems += [
            f"{name}: strategies names '{unknown}', which is no strategy"
            f"{did_you_mean(unknown, known)} (possible: {', '.join(known)})"
            for unknown in dimension.strategies
            if unknown not in known
        ]
    for strategy in [] if problems else possible_strategies(parameters):
        tried = _tried_with(parameters, strategy)
        if not tried:
            problems.append(f"nothing is tried with strategy={strategy}")
        for end in (0, -1):  # single values may be fine, and exclude each other
            values = {name: _samples(dimension)[end] for name, dimension in tried.items()}
            problems += _problems(parameters, values | {"strategy": strategy})
    if problems:
        lines = "\n".join(f"  {line}" for line in dict.fromkeys(problems))
        raise ParameterError(f"sweep.space cannot be searched:\n{lines}")


def possible_strategies(parameters: Parameters) -> list[str]:
    """Return the strategies that trials may have: those that are tried, or the one there is."""
    tried = _dimensions(parameters).get("strategy")
    return [str(name) for name in tried.choices] if tried else [parameters.strategy]


def suggest(trial: optuna.Trial, parameters: Parameters) -> dict[str, Any]:
    """Return what a trial tries, by dotted name; what depends on its strategy comes last."""
    tried, strategy = _dimensions(parameters).get("strategy"), parameters.strategy
    if tried:
        strategy = str(trial.suggest_categorical("strategy", tried.choices))
    dimensions = _tried_with(parameters, strategy)
    return {name: _suggest(trial, name, dimension) for name, dimension in dimensions.items()}


def with_values(parameters: Parameters, values: dict[str, Any]) -> Parameters:
    """Return the parameters of a run with others in the place of some, given by dotted name.

    Raises:
        ParameterError: when a name is unknown or a value is refused.
    """
    tree = parameters.model_dump(mode="json", exclude={"sweep"})
    for name, value in values.items():
        _put(tree, name, value)
    return validate_parameters(tree)


def identity(parameters: Parameters, splits: pd.DataFrame) -> dict[str, Any]:
    """Return what must be equal for trials to be comparable, as plain data.

    It holds what is tried, all other parameters that a training depends on, and the SHA-256 of the
    images with their labels and splits, so that a moved folder is still the same data.

    Args:
        parameters: of the run.
        splits: the table of `split_dataset`; test images, if they are in it, do not count.
    """
    tree = parameters.model_dump(mode="json", include=set(TRAINING_GROUPS))
    for group, name in (
        ("training", "resume"),
        ("training", "num_workers"),
        ("model", "trust_code"),
    ):
        del tree[group][name]
    tree["dataset"] = {"seed": parameters.dataset.seed}  # of the views; that of the splits shows
    possible = possible_strategies(parameters)
    if AUTO not in possible:
        tree["strategies"] = {name: tree["strategies"][name] for name in possible}
    tree["space"] = {
        name: dimension.model_dump(mode="json")
        for name, dimension in sorted(_dimensions(parameters).items())
    }
    if is_weights_file(parameters.model.weights) and Path(parameters.model.weights).is_file():
        tree["weights"] = hash_files([parameters.model.weights])[0]
    seen = splits[splits["split"] != "test"]
    hashes = hash_files(seen["path"].tolist())
    rows = [*zip(hashes, seen["class_index"].tolist(), seen["split"].tolist(), strict=True)]
    tree["images"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return tree


def open_study(
    storage: BaseStorage, parameters: Parameters, splits: pd.DataFrame
) -> optuna.study.Study:
    """Return the study of all trials that are comparable, a new one where there is none.

    Its name ends in a hash of `identity`: whatever changes, what was tried before is never mixed
    with what is tried now, and is found again when the change is taken back.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # the lines of the log are our own
    what = identity(parameters, splits)
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]
    options, name = parameters.sweep, f"{parameters.sweep.study}-{digest}"
    is_new = name not in optuna.get_all_study_names(storage)
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        pruner=_pruner(options),
        direction=direction(parameters),
        load_if_exists=True,
    )
    if is_new:
        logger.info("Study %s is new%s", name, _differences(study, storage, options.study, what))
        study.set_user_attr("identity", what)
    else:
        done = len(study.get_trials(deepcopy=False, states=FINISHED))
        logger.info("Study %s has %d finished trials and goes on", name, done)
    return study


def direction(parameters: Parameters) -> Literal["maximize", "minimize"]:
    """Return whether a larger value of `training.monitor` is better."""
    return "maximize" if parameters.training.monitor == "val_accuracy" else "minimize"


def run_trials(study: optuna.study.Study, parameters: Parameters, train: Train) -> None:
    """Run trials until the study has `sweep.trials`, or for `sweep.timeout_minutes`.

    Any number of processes may do so on one study: together they make exactly so many trials, and
    each of them returns when all have ended. A trial that a killed process left behind is tried
    again, with the same values.

    Args:
        study: what `open_study` has returned.
        parameters: of the run.
        train: trains once; takes the trial's number, its values by dotted name, the parameters with
            these values, and what to call after every epoch with a row that has `val_accuracy`
            and `val_loss`.

    Raises:
        ParameterError: when a trial's parameters turn out to be impossible.
    """
    options = parameters.sweep
    wanted = options.trials or math.inf
    end = time.monotonic() + 60 * (options.timeout_minutes or math.inf)
    adopted: set[int] = set()
    with progress_bar("Sweep, trial") as bar, no_experimental_warnings():
        task = bar.add_task("", total=options.trials, epoch="", figures="")
        while time.monotonic() < end:
            retry_dead(study, adopted)
            trials = study.get_trials(deepcopy=False)
            finished = sum(trial.state in FINISHED for trial in trials)
            bar.update(task, completed=finished, epoch=f"{finished + 1}")
            if finished >= wanted:
                break
            if sum(trial.state == TrialState.RUNNING for trial in trials) + finished >= wanted:
                time.sleep(1)  # others are at the last ones, which fall to us if they die
                continue
            _run_trial(study, parameters, train)
    study._storage.remove_session()


def best_trial(trials: Sequence[FrozenTrial], monitor: str) -> FrozenTrial:
    """Return the best of the complete trials; equal accuracies are told apart by the loss.

    Raises:
        TrainingError: when none is complete.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise TrainingError(
            f"None of the {len(trials)} trials came to its end: each was stopped early, or its loss"
            " was no longer finite. Lower the rates in sweep.space, or raise sweep.trials."
        )
    return max(complete, key=lambda trial: score(trial.user_attrs, monitor))


def trial_table(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Return a row a finished trial: number, state, best epoch's metrics, seconds, what was tried.

    Of a trial that was stopped early, `val_accuracy` and `val_loss` are those of its best epoch so
    far; they are missing where not even the first one ended.
    """
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            **{name: trial.user_attrs.get(name) for name in ("val_accuracy", "val_loss")},
            "best_epoch": trial.user_attrs.get("epoch"),
            "epochs": len(trial.intermediate_values),
            "seconds": round(trial.duration.total_seconds(), 2) if trial.duration else None,
            **trial.params,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows)


def _run_trial(study: optuna.study.Study, parameters: Parameters, train: Train) -> None:
    """Ask for a trial, run it and tell how it ended; nothing where the last one is taken."""
    trial = study.ask()
    with heartbeat(trial):
        if _is_surplus(study, trial, parameters.sweep):
            _tell(study, trial, None, TrialState.FAIL)
            return
        study.sampler = _sampler(parameters, trial.number)
        state, value = TrialState.COMPLETE, None
        try:
            value = _objective(trial, parameters, train)
        except optuna.TrialPruned:
            state = TrialState.PRUNED
        except UpdateFinishedTrialError:
            logger.warning(
                "Trial %d gave no sign of life for a while, and is tried again", trial.number
            )
        except Exception:
            _tell(study, trial, None, TrialState.FAIL)
            raise
        _tell(study, trial, value, state)
    _log_trial(study, trial.number, parameters)


def _tell(
    study: optuna.study.Study, trial: optuna.Trial, value: float | None, state: TrialState
) -> None:
    """Say how a trial ended, unless that was said before, of it or by it."""
    with suppress(UpdateFinishedTrialError):  # in the very moment between looking and telling
        study.tell(trial, value, state, skip_if_finished=True)


def _objective(trial: optuna.Trial, parameters: Parameters, train: Train) -> float:
    """Return the monitored metric of the best epoch."""
    monitor = parameters.training.monitor
    rows: list[dict[str, Any]] = []

    def on_epoch(row: dict[str, Any], epoch: int) -> None:
        rows.append({name: row[name] for name in ("val_accuracy", "val_loss")} | {"epoch": epoch})
        trial.report(row[monitor], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    values = suggest(trial, parameters)
    try:
        train(trial.number, values, with_values(parameters, values), on_epoch)
    except TrainingError as error:  # the loss is not finite: a bad trial, and one to learn from
        logger.warning("Trial %d: %s", trial.number, error)
        raise optuna.TrialPruned from error
    finally:
        best = max(rows, key=partial(score, monitor=monitor), default={})
        for name, figure in best.items():
            trial.set_user_attr(name, figure)
    if not best:
        raise ParameterError("training.epochs: 0 leaves nothing to compare; give at least 1")
    return float(best[monitor])


def _is_surplus(study: optuna.study.Study, trial: optuna.Trial, options: SweepOptions) -> bool:
    """Return whether enough trials have a lower number.

    Numbers are given out one by one, and a failed trial never comes back to life. So however many
    processes ask at once, those that are no surplus are never more than `sweep.trials`.
    """
    before = sum(
        other.number < trial.number and other.state != TrialState.FAIL
        for other in study.get_trials(deepcopy=False)
    )
    return options.trials is not None and before >= options.trials


def _log_trial(study: optuna.study.Study, number: int, parameters: Parameters) -> None:
    """Say in a line how a trial ended."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    trial, monitor = study.get_trials(deepcopy=False)[number], parameters.training.monitor
    if trial.state not in FINISHED:
        return
    complete = [t for t in trials if t.state == TrialState.COMPLETE]
    reached, best = "", ""
    if "val_loss" in trial.user_attrs:
        figures = trial.user_attrs
        reached = f"val_accuracy {figures['val_accuracy']:.4f}, val_loss {figures['val_loss']:.4f}"
    if complete:
        best = f"; best is trial {best_trial(complete, monitor).number}"
    values = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in trial.params.items()
    )
    of = f" of {parameters.sweep.trials}" if parameters.sweep.trials else ""
    logger.info(
        "Trial %d %s: %s; %s; %d%s trials%s",
        number, trial.state.name.lower(), reached, values, len(trials), of, best,
    )  # fmt: skip


def _sampler(parameters: Parameters, number: int) -> optuna.samplers.BaseSampler:
    """Return the sampler of one trial.

    It is seeded by the trial's number as well: else a process that goes on with a study, or one of
    two at once, would try again what was tried.
    """
    seed = int(np.random.SeedSequence([parameters.seed, number]).generate_state(1)[0])
    if parameters.sweep.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed)


def _pruner(options: SweepOptions) -> optuna.pruners.BasePruner:
    return {
        "median": optuna.pruners.MedianPruner(n_warmup_steps=2),  # not after the first epoch
        "hyperband": optuna.pruners.HyperbandPruner(),
        "none": optuna.pruners.NopPruner(),
    }[options.pruner]


def _differences(
    study: optuna.study.Study, storage: BaseStorage, prefix: str, what: dict[str, Any]
) -> str:
    """Return a clause on how a new study differs from the latest of the same name."""
    earlier = [
        other
        for other in optuna.get_all_study_summaries(storage, include_best_trial=False)
        if other.study_name.rpartition("-")[0] == prefix
        and other.study_name != study.study_name
        and "identity" in other.user_attrs
    ]
    if not earlier:
        return ""
    now, before = (_flat(tree) for tree in (what, earlier[-1].user_attrs["identity"]))
    names = [name for name in {**now, **before} if now.get(name) != before.get(name)]
    return f"; {earlier[-1].study_name} had other {', '.join(names)}"


def _flat(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree by dotted names; each dimension of the space stays whole."""
    space = {f"space of {name}": str(value) for name, value in tree.get("space", {}).items()}
    rest = {name: value for name, value in tree.items() if name != "space"}
    return dict(flatten(rest)) | space


def _dimensions(parameters: Parameters) -> dict[str, Dimension]:
    """Return all that may be tried, without what was switched off by null."""
    return {name: tried for name, tried in parameters.sweep.space.items() if tried is not None}


def _tried_with(parameters: Parameters, strategy: str) -> dict[str, Dimension]:
    """Return what is tried in trials that have a strategy."""
    return {
        name: dimension
        for name, dimension in _dimensions(parameters).items()
        if not dimension.strategies or strategy in dimension.strategies
    }


def _suggest(trial: optuna.Trial, name: str, dimension: Dimension) -> Any:
    if dimension.type == "categorical":
        return trial.suggest_categorical(name, dimension.choices)
    assert dimension.low is not None and dimension.high is not None
    low, high, step, log = dimension.low, dimension.high, dimension.step, dimension.log
    if dimension.type == "int":
        return trial.suggest_int(name, int(low), int(high), step=int(step or 1), log=log)
    return trial.suggest_float(name, low, high, step=step, log=log)


def _samples(dimension: Dimension) -> tuple[Any, ...]:
    """Return all choices, or both ends of an interval with something between them."""
    if dimension.type == "categorical":
        return dimension.choices
    assert dimension.low is not None and dimension.high is not None
    if dimension.type == "int":
        return int(dimension.low), int(dimension.high)
    between = dimension.low + (dimension.step or 0.37 * (dimension.high - dimension.low))
    return dimension.low, between, dimension.high


def _problems(parameters: Parameters, values: dict[str, Any]) -> list[str]:
    """Return what the options say against some values."""
    try:
        with_values(parameters, values)
    except ParameterError as error:
        return [line.strip() for line in str(error).splitlines() if line.startswith("  ")]
    return []


def _refusal(name: str) -> str:
    """Return why trials must not differ in a parameter, or nothing where they may."""
    group = name.split(".", maxsplit=1)[0]
    if group in ("dataset", "seed"):
        return "it changes the splits, and trials on other images cannot be compared; set it once"
    if name == "training.monitor":
        return "it is what trials are compared by; set it once"
    known = group in Parameters.model_fields
    if name in WITHOUT_EFFECT or (known and group not in TRAINING_GROUPS):
        return "it does not change what a network learns; set it once"
    return ""


def _put(tree: Any, name: str, value: Any) -> None:
    """Set a value in nested dicts and lists by its dotted name."""
    *groups, last = name.split(".")
    try:
        for group in groups:
            tree = tree[int(group)] if isinstance(tree, list) else tree.setdefault(group, {})
        tree[int(last) if isinstance(tree, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise ParameterError(f"These parameters cannot be used:\n  {name}: unknown") from error
