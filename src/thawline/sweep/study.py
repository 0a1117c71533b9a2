"""Search for good parameters with Optuna: open the study, run its trials, choose the best."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import optuna
import pandas as pd
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from thawline.data.decoding import hash_files
from thawline.errors import ParameterError, StorageError, TrainingError, first_line
from thawline.networks.files import is_weights_file
from thawline.options import AUTO, TRAINING_GROUPS, Parameters, flatten
from thawline.sweep.space import active_dimensions, possible_strategies, suggest, with_values
from thawline.training.progress import OnEpoch, score

logger = logging.getLogger(__name__)

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
FINGERPRINT = "identity"  # attribute of a study
METRICS = ("val_accuracy", "val_loss")  # of the best epoch, attributes of a trial
PRUNERS: dict[str, Callable[[], optuna.pruners.BasePruner]] = {
    "median": partial(optuna.pruners.MedianPruner, n_warmup_steps=2),  # not after the first epoch
    "hyperband": optuna.pruners.HyperbandPruner,
    "none": optuna.pruners.NopPruner,
}
SAMPLERS = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}

Train = Callable[[int, dict[str, Any], Parameters, OnEpoch], None]


def open_study(
    storage: BaseStorage, parameters: Parameters, splits: pd.DataFrame
) -> optuna.study.Study:
    """Open the study of all comparable trials, or create it.

    Its name ends in a hash of `study_fingerprint`: trials that cannot be compared are never mixed,
    and an earlier study is found again when a change is taken back.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # Thawline logs one line per trial
    fingerprint = study_fingerprint(parameters, splits)
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:8]
    name = f"{parameters.sweep.study}-{digest}"
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        pruner=PRUNERS[parameters.sweep.pruner](),
        direction=direction(parameters),
        load_if_exists=True,
    )
    if FINGERPRINT in study.user_attrs:
        done = len(study.get_trials(deepcopy=False, states=FINISHED))
        logger.info("Resuming study %s with %d finished trials", name, done)
    else:
        logger.info("Study %s is new%s", name, _differences(name, storage, fingerprint))
        study.set_user_attr(FINGERPRINT, fingerprint)
    return study


def study_fingerprint(parameters: Parameters, splits: pd.DataFrame) -> dict[str, Any]:
    """Return what must be equal for trials to be comparable, as plain data.

    It holds the space, all other parameters that a training depends on, and the SHA-256 of the
    images with their labels and splits, so that a moved folder is still the same data. Test images
    do not count.
    """
    tree = parameters.model_dump(mode="json", include=set(TRAINING_GROUPS))
    del tree["training"]["resume"], tree["training"]["num_workers"], tree["model"]["trust_code"]
    del tree["training"]["wise_ft"]  # trials are compared by their epochs
    tree["dataset"] = {"seed": parameters.dataset.seed}  # seeds the views, too
    possible = possible_strategies(parameters)
    if AUTO not in possible:
        tree["strategies"] = {name: tree["strategies"][name] for name in possible}
    tree["space"] = {
        name: dimension.model_dump(mode="json")
        for name, dimension in sorted(active_dimensions(parameters).items())
    }
    if is_weights_file(parameters.model.weights) and Path(parameters.model.weights).is_file():
        tree["weights"] = hash_files([parameters.model.weights])[0]
    seen = splits[splits["split"] != "test"]
    hashes = hash_files(seen["path"].tolist())
    rows = [*zip(hashes, seen["class_index"].tolist(), seen["split"].tolist(), strict=True)]
    tree["images"] = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
    return tree


def direction(parameters: Parameters) -> Literal["maximize", "minimize"]:
    """Return whether a larger or a smaller value of `training.monitor` is better."""
    return "maximize" if parameters.training.monitor == "val_accuracy" else "minimize"


def run_trials(study: optuna.study.Study, parameters: Parameters, train: Train) -> None:
    """Run trials until the study has `sweep.trials`, or for `sweep.timeout_minutes`.

    Any number of processes may share a study. Each stops after the trial in which it finds enough
    finished ones, so there may be one trial more per further process. `train` trains once: it takes
    the trial's number, its values by dotted name, the parameters with these values, and a function
    to call after every epoch with a row that has `METRICS`.

    Raises:
        ParameterError: if a trial's parameters turn out to be impossible.
        StorageError: if the database does not answer.
    """
    options = parameters.sweep
    finished = len(study.get_trials(deepcopy=False, states=FINISHED))
    if options.trials and finished >= options.trials:
        return
    callbacks: list[Any] = [partial(_log_trial, parameters=parameters)]
    if options.trials:
        callbacks.append(optuna.study.MaxTrialsCallback(options.trials, FINISHED))
    try:
        study.optimize(
            partial(_objective, parameters=parameters, train=train),
            timeout=60 * options.timeout_minutes if options.timeout_minutes else None,
            callbacks=callbacks,
        )
    except (SQLAlchemyError, StorageInternalError, UnboundLocalError) as error:
        # Optuna 5.0 raises an UnboundLocalError while it handles a storage's error.
        cause = error.__context__ if isinstance(error, UnboundLocalError) else error
        if not isinstance(cause, (SQLAlchemyError, StorageInternalError)):
            raise
        url = options.storage and sqlalchemy.make_url(options.storage.get_secret_value())
        raise StorageError(
            f"sweep.storage: {url.render_as_string() if url else 'the database'} does not answer"
            f" ({first_line(cause.__cause__ or cause)}). Repeat the command when it is back:"
            " finished trials are kept."
        ) from error


def best_trial(trials: Sequence[FrozenTrial], monitor: str) -> FrozenTrial:
    """Return the best of the complete trials; the loss decides between equal accuracies.

    Raises:
        TrainingError: if none is complete.
    """
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        raise TrainingError(
            f"All {len(trials)} trials were pruned or diverged. Lower the learning rates in"
            " sweep.space, or raise sweep.trials."
        )
    return max(complete, key=lambda trial: score(trial.user_attrs, monitor))


def trial_table(trials: Sequence[FrozenTrial]) -> pd.DataFrame:
    """Return one row per finished trial: number, state, best epoch's metrics, seconds, values.

    `val_accuracy` and `val_loss` of a pruned trial are those of its best epoch so far, and missing
    if not even the first one ended.
    """
    rows = [
        {
            "trial": trial.number,
            "state": trial.state.name.lower(),
            **{name: trial.user_attrs.get(name) for name in METRICS},
            "best_epoch": trial.user_attrs.get("epoch"),
            "epochs": len(trial.intermediate_values),
            "seconds": round(trial.duration.total_seconds(), 2) if trial.duration else None,
            **trial.params,
        }
        for trial in trials
    ]
    return pd.DataFrame(rows)


def _objective(trial: optuna.Trial, parameters: Parameters, train: Train) -> float:
    """Return the monitored metric of the best epoch."""
    # With the run's seed alone, a resumed or a second process would repeat earlier trials.
    seed = int(np.random.SeedSequence([parameters.seed, trial.number]).generate_state(1)[0])
    trial.study.sampler = SAMPLERS[parameters.sweep.sampler](seed=seed)
    monitor = parameters.training.monitor
    rows: list[dict[str, Any]] = []

    def on_epoch(row: dict[str, Any], epoch: int) -> None:
        rows.append({name: row[name] for name in METRICS} | {"epoch": epoch})
        trial.report(row[monitor], epoch)
        if trial.should_prune():
            raise optuna.TrialPruned

    values = suggest(trial, parameters)
    try:
        train(trial.number, values, with_values(parameters, values), on_epoch)
    except TrainingError as error:  # the loss is not finite: the sampler learns from it
        logger.warning("Trial %d: %s", trial.number, error)
        raise optuna.TrialPruned from error
    finally:
        best = max(rows, key=partial(score, monitor=monitor), default={})
        for name, figure in best.items():
            trial.set_user_attr(name, figure)
    if not best:
        raise ParameterError("training.epochs: 0 leaves nothing to compare; give at least 1")
    return float(best[monitor])


def _log_trial(study: optuna.study.Study, trial: FrozenTrial, parameters: Parameters) -> None:
    """Log one line on how a trial ended."""
    finished = study.get_trials(deepcopy=False, states=FINISHED)
    reached = [f"{n} {trial.user_attrs[n]:.4f}" for n in METRICS if n in trial.user_attrs]
    best = ""
    if any(other.state == TrialState.COMPLETE for other in finished):
        best = f"; best is trial {best_trial(finished, parameters.training.monitor).number}"
    values = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in trial.params.items()
    )
    of = f" of {parameters.sweep.trials}" if parameters.sweep.trials else ""
    logger.info(
        "Trial %d %s: %s; %s; %d%s trials%s",
        trial.number, trial.state.name.lower(), ", ".join(reached), values, len(finished), of, best,
    )  # fmt: skip


def _differences(name: str, storage: BaseStorage, fingerprint: dict[str, Any]) -> str:
    """Return a clause on how a new study differs from the latest of the same prefix."""
    earlier = [
        other
        for other in optuna.get_all_study_summaries(storage, include_best_trial=False)
        if other.study_name.rpartition("-")[0] == name.rpartition("-")[0]
        and FINGERPRINT in other.user_attrs
    ]
    if not earlier:
        return ""
    now, before = dict(flatten(fingerprint)), dict(flatten(earlier[-1].user_attrs[FINGERPRINT]))
    names = [name for name in now | before if now.get(name) != before.get(name)]
    return f"; {earlier[-1].study_name} had other {', '.join(names)}"
