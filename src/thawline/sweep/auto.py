"""Choose a strategy: by its name, or by what it reaches on validation images in a budget."""

import logging
from collections.abc import Callable
from itertools import chain
from typing import NamedTuple

import numpy as np
import pandas as pd

from thawline.data.decoding import image_size
from thawline.data.splitting import find_groups
from thawline.errors import ParameterError
from thawline.networks.building import pretrained_preprocessing
from thawline.options import AUTO, FINE_TUNE, PROBE, LastStages, Parameters, Phase
from thawline.thaw.device import synchronized_time
from thawline.training.logistic_regression import is_better
from thawline.training.loop import train_step
from thawline.training.progress import TrainingResult
from thawline.training.setup import TrainingContext, prepare_phase
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

SIZES = (3 / 7, 4 / 7, 5 / 7)  # times the weights' size, for small images: 96 to 160 px for 224 px
LARGER = 10 / 7  # 320 px for 224 px
MAX_UPSAMPLING = 2.0  # where a larger input shows nothing new
NUM_SIZED_IMAGES = 100  # that the size of the images is judged by
DEPTHS = tuple(LastStages(last=last) for last in (5, 4, 3, 2))  # what fine-tuning may train
NUM_TIMED_STEPS = 2
MIN_ERRORS = 4  # on the validation split, for fine-tuning to show that it is better
COLUMNS = ["strategy", "size", "trainable", "val_accuracy", "cv_accuracy", "seconds"]


class Trained(NamedTuple):
    """A training that was tried."""

    parameters: Parameters
    result: TrainingResult
    correct: np.ndarray  # whether the network is right on each validation image, (N,) bool
    size: int  # side of its input, px
    seconds: float  # also those before it was interrupted


class Choice(NamedTuple):
    """A strategy, named or chosen by the data."""

    asked: str  # the parameter `strategy`
    parameters: Parameters  # those of the run, with this strategy and what it decides
    reason: str  # a sentence with the numbers that led to it
    tried: tuple[Trained, ...] = ()

    @property
    def name(self) -> str:
        """The name of the strategy."""
        return self.parameters.strategy

    @property
    def result(self) -> TrainingResult | None:
        """The training, if choosing the strategy has taken it."""
        return next((t.result for t in self.tried if t.parameters is self.parameters), None)

    @property
    def seconds(self) -> float:
        """How long choosing took, with every training that was tried."""
        return sum(tried.seconds for tried in self.tried)

    def describe(self) -> dict[str, str]:
        """Return the strategy that was asked for, the one that was chosen, and why."""
        return {
            "strategy": self.asked,
            "chosen_strategy": self.name,
            "strategy_reason": self.reason,
        }

    def table(self) -> pd.DataFrame:
        """Return one row per training that was tried: what it was, accuracies, seconds."""
        rows = []
        for tried in self.tried:
            trainable = tried.parameters.phases[-1].trainable
            last = trainable.last if isinstance(trainable, LastStages) else trainable
            path = tried.result.linear_head["path"]
            cv_accuracy = min(path, key=lambda row: row["loss"])["accuracy"] if path else np.nan
            accuracy, name = tried.correct.mean(), tried.parameters.strategy
            rows.append((name, tried.size, last, accuracy, cv_accuracy, tried.seconds))
        return pd.DataFrame(rows, columns=COLUMNS)


Train = Callable[[Parameters], Trained]
Prepare = Callable[[Parameters], TrainingContext]


def choose_strategy(
    parameters: Parameters,
    splits: pd.DataFrame,
    train: Train,
    prepare: Prepare,
    checkpoints: TrainingCheckpoints | None = None,
) -> Choice:
    """Return the strategy, named or chosen by the data; all but `parameters` serves `auto`.

    `auto` fits a head on all stages at several image sizes, fine-tunes if it may pay, and takes the
    best. A costlier training is taken if it is better by more than the standard error of the
    difference, in which images of a group count together. Fine-tuning trains up to five stages, as
    many as fit into what is left of `auto.budget_minutes`, or as many as the training that is to be
    resumed.
    """
    if parameters.strategy != AUTO:
        named = parameters.with_strategy(parameters.strategy)
        return Choice(parameters.strategy, named, "named by the parameter strategy")
    budget = 60 * parameters.auto.budget_minutes
    tried, best = try_sizes(parameters, splits, train, budget)
    left = budget - sum(each.seconds for each in tried)
    reasons = [f"{best.correct.mean():.3f} by a linear head at {best.size} px"]
    errors = int((~best.correct).sum())
    if errors < MIN_ERRORS:
        left_over = f"{errors} error{'s' * (errors != 1)}"
        reasons.append(f"with {left_over} left, fine-tuning could not show that it is better")
    elif left > 0 and (fine := deepest_that_fits(best.parameters, prepare, left, checkpoints)):
        tuned = train(fine)
        tried.append(tuned)
        gains = tuned.correct.astype(float) - best.correct
        better = is_better(gains, find_groups(splits, "val"))
        best = tuned if better else best
        reasons += [
            f"{tuned.correct.mean():.3f} by fine-tuning ({FINE_TUNE})",
            f"which is {'' if better else 'not '}better by more than its standard error",
        ]
    else:
        reasons.append("fine-tuning does not fit into auto.budget_minutes")
    reason = f"{best.parameters.strategy}: validation accuracy {', '.join(reasons)}"
    return Choice(AUTO, best.parameters, reason, tuple(tried))


def try_sizes(
    parameters: Parameters, splits: pd.DataFrame, train: Train, budget: float
) -> tuple[list[Trained], Trained]:
    """Fit a head on all stages at rising image sizes; return every training, and the best.

    That has the lowest cross-validated loss. Stop at a size that does not lower it by more than the
    standard error, or before one that does not fit into `budget`, in seconds.
    """
    tried: list[Trained] = []
    usual = pretrained_preprocessing(parameters.model).size
    for size in possible_sizes(parameters, splits):
        if tried:
            expected = tried[-1].seconds * ((size or usual) / tried[-1].size) ** 2
            if expected > budget - sum(each.seconds for each in tried):
                break
        transforms = parameters.transforms.model_copy(update={"size": size})
        own = parameters.model_copy(update={"transforms": transforms})
        try:
            tried.append(train(own.with_strategy(PROBE)))
        except ParameterError as error:  # a transformer may take one size alone
            if size == parameters.transforms.size:
                raise
            logger.info("%s", error)
            continue
        if len(tried) > 1:
            groups = np.array(tried[-1].result.linear_head["groups"])
            gains = cv_losses(tried[-2]) - cv_losses(tried[-1])
            if not is_better(gains, groups if len(groups) else None):
                break
    return tried, min(tried, key=lambda each: cv_losses(each).mean())


def possible_sizes(parameters: Parameters, splits: pd.DataFrame) -> list[int | None]:
    """Return sides of the network's input in px, rising; None is the weights' size.

    They begin at the size of the images, at most that of the weights, and do not go beyond twice
    the size of the images, except for the size of the weights. `transforms.size` is the only one if
    it is given.
    """
    if parameters.transforms.size is not None:
        return [parameters.transforms.size]
    paths = splits["path"].iloc[:: max(1, len(splits) // NUM_SIZED_IMAGES)]
    side = float(np.median([min(image_size(path)) for path in paths]))
    usual = pretrained_preprocessing(parameters.model).size
    smaller = [
        size for f in SIZES if min(side, usual) <= (size := 32 * round(usual * f / 32)) < usual
    ]
    larger = 32 * round(usual * LARGER / 32)
    return [*smaller, None, *([larger] if larger <= MAX_UPSAMPLING * side else [])]


def cv_losses(tried: Trained) -> np.ndarray:
    """Return the cross-validated loss of a head on each training image, (N,) float64."""
    return np.array(tried.result.linear_head["losses"])


def deepest_that_fits(
    parameters: Parameters,
    prepare: Prepare,
    seconds: float,
    checkpoints: TrainingCheckpoints | None = None,
) -> Parameters | None:
    """Return parameters that fine-tune as many stages as take less than `seconds`, if any do.

    If a training is to be resumed, its stages are taken: others would begin anew.
    """
    own = parameters.with_strategy(FINE_TUNE)
    run = prepare(own)
    *before, last = own.phases
    phases = [last.model_copy(update={"trainable": depth}) for depth in DEPTHS]
    begun = (p for p in phases if checkpoints and checkpoints.has(run, [*before, p]))
    fitting = (p for p in phases if estimate_seconds(run, p) < seconds)
    if (phase := next(chain(begun, fitting), None)) is None:
        return None
    strategy = own.strategies[FINE_TUNE].model_copy(update={"phases": (*before, phase)})
    return own.model_copy(update={"strategies": own.strategies | {FINE_TUNE: strategy}})


def estimate_seconds(run: TrainingContext, phase: Phase) -> float:
    """Return how long a phase would take, by some steps of it, which the network then has taken."""
    current = prepare_phase(run, phase)
    steps = run.plan_epoch(run.options.batch_size)[:NUM_TIMED_STEPS]
    start = synchronized_time()
    boundaries = [*run.load_steps(current.features, steps, epoch=0)]
    images = sum(len(step.positions) for step in steps)
    below = (synchronized_time() - start) / images
    for step, boundary in zip(steps, boundaries, strict=True):
        start = synchronized_time()  # the first one is slower
        train_step(run, current, step, boundary)
    above = (synchronized_time() - start) / len(steps[-1].positions)
    views = min(run.parameters.augmentation.views_per_image or phase.epochs, phase.epochs)
    count, val_count = len(run.train_set.labels), len(run.val_set.labels)
    seconds = count * (views * below + phase.epochs * above) + phase.epochs * val_count * above / 3
    logger.debug("Fine-tuning %s would take about %.0f s", phase.trainable, seconds)
    return seconds
