"""Made-up trainings, as a comparison gets them."""

import itertools

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
    truth, hard = rng.integers(0, len(classes), images), rng.normal(0, 1.5, images)
    rows, histories, predictions, settings = [], {}, {}, []
    for (place, strategy), seed in itertools.product(enumerate(accuracies), range(seeds)):
        accuracy, seconds = accuracies[strategy], 7.0 * (place + 1) ** 2
        predicted = make_predictions(rng, accuracy, truth, hard, classes)
        metrics, *_ = compute_metrics(predicted, OPTIONS)
        predictions[strategy, seed] = predicted
        histories[strategy, seed] = make_history(rng, accuracy, epochs, seconds)
        row = {"strategy": strategy, "seed": seed, "best_epoch": epochs}
        rows.append(row | {"seconds": seconds * rng.uniform(0.9, 1.1)} | metrics)
        of_data = {"dataset.root": "../shared/my photographs", "training.epochs": str(epochs)}
        settings.append({"strategy": strategy, "seed": str(seed)} | of_data)
    return Trainings(pd.DataFrame(rows), stack(histories), stack(predictions), settings)


def make_predictions(
    rng: np.random.Generator,
    accuracy: float,
    truth: np.ndarray,
    hard: np.ndarray,
    classes: tuple[str, ...],
) -> pd.DataFrame:
    """Return predictions with about that accuracy."""
    noisy = hard + rng.normal(0, 1, len(truth))
    right = noisy < np.quantile(noisy, np.clip(accuracy + rng.normal(0, 0.01), 0, 1))
    wrong = (truth + rng.integers(1, len(classes), len(truth))) % len(classes)
    guess = np.where(right, truth, wrong)
    table = rng.dirichlet(np.ones(len(classes)), len(truth)) * 0.4
    table[np.arange(len(truth)), guess] += 0.6
    names, columns = np.array(classes), [f"probability_{name}" for name in classes]
    paths = [f"test/{idx}.jpg" for idx in range(len(truth))]
    found = pd.DataFrame({"path": paths, "label": names[truth], "prediction": names[guess]})
    return found.join(pd.DataFrame(table, columns=columns))


def make_history(
    rng: np.random.Generator, accuracy: float, epochs: int, seconds: float
) -> pd.DataFrame:
    """Return a history of a training that comes near that accuracy."""
    learnt = 1 - np.exp(-np.arange(1, epochs + 1) / 2) + rng.normal(0, 0.02, epochs)
    return pd.DataFrame(
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
