"""Made-up trainings, as a comparison gets them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from thawline.evaluation.comparison import Trainings
from thawline.evaluation.metrics import compute_metrics
from thawline.options import EvaluationOptions
from thawline.pipelines.compare.nodes import stack

OPTIONS = EvaluationOptions()


def make_trials(
    accuracies: dict[str, float],
    seeds: int = 3,
    images: int = 153,
    classes: tuple[str, ...] = ("ants", "bees"),
    epochs: int = 5,
) -> Trainings:
    """Return a training for each strategy and seed; images differ in how hard they are."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, len(classes), images)
    hard = rng.normal(0, 1.5, images)
    trials = {
        (name, seed): make_trial(
            rng, name, seed, accuracy, truth, hard, classes, epochs, 7.0 * (place + 1) ** 2
        )
        for place, (name, accuracy) in enumerate(accuracies.items())
        for seed in range(seeds)
    }
    rows, histories, predictions, settings = zip(*trials.values(), strict=True)
    stacked = (stack(dict(zip(trials, each, strict=True))) for each in (histories, predictions))
    return Trainings(pd.DataFrame(rows), *stacked, [*settings])


def make_trial(
    rng: np.random.Generator,
    strategy: str,
    seed: int,
    accuracy: float,
    truth: np.ndarray,
    hard: np.ndarray,
    classes: tuple[str, ...],
    epochs: int,
    seconds: float,
) -> tuple[dict[str, object], pd.DataFrame, pd.DataFrame, dict[str, str]]:
    """Return one training with about that test accuracy: row, history, predictions, settings."""
    noisy = hard + rng.normal(0, 1, len(truth))
    right = noisy < np.quantile(noisy, np.clip(accuracy + rng.normal(0, 0.01), 0, 1))
    wrong = (truth + rng.integers(1, len(classes), len(truth))) % len(classes)
    guess = np.where(right, truth, wrong)
    table = rng.dirichlet(np.ones(len(classes)), len(truth)) * 0.4
    table[np.arange(len(truth)), guess] += 0.6
    columns = [f"probability_{name}" for name in classes]
    predictions = pd.DataFrame(
        {
            "path": [f"test/{idx}.jpg" for idx in range(len(truth))],
            "label": np.array(classes)[truth],
            "prediction": np.array(classes)[guess],
        }
    ).join(pd.DataFrame(table, columns=columns))
    metrics, *_ = compute_metrics(predictions, OPTIONS)
    learnt = 1 - np.exp(-np.arange(1, epochs + 1) / 2) + rng.normal(0, 0.02, epochs)
    history = pd.DataFrame(
        {
            "epoch": np.arange(1, epochs + 1),
            "phase": 1,
            "train_loss": 0.8 - 0.6 * learnt,
            "train_accuracy": np.clip(0.5 + 0.47 * learnt, 0, 1),
            "val_loss": 0.8 - 0.5 * learnt + rng.normal(0, 0.02, epochs),
            "val_accuracy": np.clip(0.5 + (accuracy - 0.5) * learnt, 0, 1),
            "images_per_second": 100.0,
            "thaw_line": "flatten",
            "trainable_parameters": round(2562 * seconds),
            "lr": 0.005,
        }
    )
    settings = {
        "strategy": strategy,
        "seed": str(seed),
        "dataset.root": "../shared/my photographs",
        "training.epochs": str(epochs),
    }
    row = {"strategy": strategy, "seed": seed, "best_epoch": epochs}
    row["seconds"] = seconds * rng.uniform(0.9, 1.1)
    return row | metrics, history, predictions, settings
