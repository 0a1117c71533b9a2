"""Compare strategies by their trainings, and recommend one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from thawline.evaluation.predictions import probability_columns
from thawline.evaluation.significance import CONFIDENCE, SIGNIFICANT, holm_correction, paired_test

DECIMALS_BELOW_SECONDS = 10  # from so many seconds on, decimals are noise


@dataclass(frozen=True)
class TrainingOutcome:
    """The result of one training of one strategy; the splits are the same for all."""

    strategy: str
    seed: int
    metrics: dict[str, float]  # of the test split, see `compute_metrics`
    predictions: pd.DataFrame  # of the test split, see `predict_split`
    history: pd.DataFrame  # one row per epoch
    best_epoch: int  # that was kept, from 1; 0 if there was none
    seconds: float
    settings: dict[str, str]  # what to set to repeat it: a parameter's dotted name, its value


class Comparison(NamedTuple):
    """Which strategy is best, and how certain that is.

    Attributes:
        table: one row per strategy, best first, with means over seeds: strategy, seeds (their
            number), test_accuracy with test_accuracy_low and _high (95 % interval: Student's t over
            seeds, with one seed that of `compute_metrics`), test_loss (nats), train_accuracy (of
            augmented views during the epoch that was kept), generalization_gap (train_accuracy -
            test_accuracy), seconds, trainable_parameters (of the phase with most).
        pairs: best, strategy, the fields of `paired_test`, and p_holm, corrected for the number of
            rows: one row per strategy but the best.
        verdict: best, next, difference, low, high, p_value (p_holm of the next), significant,
            recommended (a strategy), sentence (all that in words).
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    verdict: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """Return all of it for JSON: the verdict, and tables as lists of rows, null for NaN."""
        rows = {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in (("strategies", self.table), ("pairs", self.pairs))
        }
        return {"verdict": self.verdict, **rows}


def compare(trials: Sequence[TrainingOutcome]) -> Comparison:
    """Rank the strategies, and test whether the best beats each of the others.

    Equal test accuracies are ordered by seconds. If the predictions have groups, the images of a
    group are tested together.
    """
    by_strategy = group_by_strategy(trials)
    rows = [_summarize(name, group) for name, group in by_strategy.items()]
    table = pd.DataFrame(rows).sort_values(
        ["test_accuracy", "seconds", "strategy"], ascending=[False, True, True], ignore_index=True
    )
    correct = {
        name: np.stack([t.predictions["label"] == t.predictions["prediction"] for t in group])
        for name, group in by_strategy.items()
    }  # bool (seeds, images)
    best, *others = table["strategy"]
    groups = trials[0].predictions.get("group")
    tests = [(best, name, *paired_test(correct[best], correct[name], groups)) for name in others]
    columns = ["best", "strategy", "difference", "low", "high", "p_value"]
    pairs = pd.DataFrame(tests, columns=columns).astype({"p_value": float})
    pairs["p_holm"] = holm_correction(pairs["p_value"].to_numpy())
    return Comparison(table, pairs, _decide(table, pairs))


def group_by_strategy(trials: Sequence[TrainingOutcome]) -> dict[str, list[TrainingOutcome]]:
    """Return the trainings of each strategy, by seed."""
    groups: dict[str, list[TrainingOutcome]] = {}
    for trial in sorted(trials, key=lambda trial: trial.seed):
        groups.setdefault(trial.strategy, []).append(trial)
    return groups


def pool_confusion(trials: Sequence[TrainingOutcome]) -> pd.DataFrame:
    """Return counts summed over trainings, one row per true and one column per predicted class."""
    names = [*probability_columns(trials[0].predictions)]
    pooled = pd.concat([trial.predictions for trial in trials], ignore_index=True)
    counts = pd.crosstab(pooled["label"], pooled["prediction"])
    return counts.reindex(index=names, columns=names, fill_value=0)


def format_p(p_value: float) -> str:
    """Return a p-value as it is printed: `= 0.02`, `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.2g}"  # noqa: PLR2004


def format_points(difference: float, low: float, high: float) -> str:
    """Return a difference of accuracies with its interval, in percentage points."""
    return f"{100 * difference:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def format_seconds(seconds: float) -> str:
    """Return a time as it is printed: `7.1 s`, `62 s`."""
    return f"{seconds:.1f} s" if seconds < DECIMALS_BELOW_SECONDS else f"{seconds:,.0f} s"


def _summarize(strategy: str, trials: Sequence[TrainingOutcome]) -> dict[str, Any]:
    """Return the row of a strategy in the table of `compare`."""
    # Rounded: sums in another order of seeds must not tell equal strategies apart.
    accuracy = round(float(np.mean([trial.metrics["test_accuracy"] for trial in trials])), 12)
    low, high = _interval([trial.metrics for trial in trials])
    kept = [trial.history[trial.history["epoch"] == trial.best_epoch] for trial in trials]
    train = float(np.mean([epoch["train_accuracy"].mean() for epoch in kept]))  # NaN: no epoch
    parameters = pd.concat([trial.history["trainable_parameters"] for trial in trials])
    return {
        "strategy": strategy,
        "seeds": len(trials),
        "test_accuracy": accuracy,
        "test_accuracy_low": low,
        "test_accuracy_high": high,
        "test_loss": float(np.mean([trial.metrics["test_loss"] for trial in trials])),
        "train_accuracy": train,
        "generalization_gap": train - accuracy,
        "seconds": float(np.mean([trial.seconds for trial in trials])),
        "trainable_parameters": 0 if parameters.empty else int(parameters.max()),
    }


def _interval(metrics: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Return the 95 % interval of the mean test accuracy, over images if there is one seed."""
    if len(metrics) == 1:
        return metrics[0]["test_accuracy_low"], metrics[0]["test_accuracy_high"]
    values = [each["test_accuracy"] for each in metrics]
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(max(0, np.mean(values) - half)), float(min(1, np.mean(values) + half))


def _decide(table: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the verdict: the best, or the cheapest of those that do not differ significantly."""
    best = table["strategy"].iloc[0]
    if pairs.empty:
        unknown = dict.fromkeys(("next", "difference", "low", "high", "p_value"))
        sentence = f"Only {best} was trained, so there is nothing to compare it with."
        alone = {"significant": False, "recommended": best, "sentence": sentence}
        return {"best": best, **unknown, **alone}
    closest = pairs.iloc[0]
    other, p_value = closest["strategy"], float(closest["p_holm"])
    limits = {name: float(closest[name]) for name in ("difference", "low", "high")}
    equals = [best, *pairs.loc[pairs["p_holm"] >= SIGNIFICANT, "strategy"]]
    seconds = table.set_index("strategy")["seconds"]
    cheapest = best if p_value < SIGNIFICANT else str(seconds[equals].idxmin())
    takes = seconds.map(format_seconds)
    corrected = "corrected " if len(pairs) > 1 else ""
    found = f"{format_points(**limits)} points, {corrected}p {format_p(p_value)}"
    if p_value < SIGNIFICANT:
        sentence = f"{best} beats {other}: {found}, in {takes[best]} instead of {takes[other]}."
    else:
        compared = takes[best] if cheapest == best else f"{takes[cheapest]}; {best} {takes[best]}"
        sentence = (
            f"No significant difference between {best} and {other}: {found}. Take {cheapest}, the"
            f" cheapest of {len(equals)} without a significant difference ({compared})."
        )
    if (table["seeds"] == 1).any():
        sentence += " With one seed, the variation between seeds is unknown."
    return {
        "best": best,
        "next": other,
        **limits,
        "p_value": p_value,
        "significant": p_value < SIGNIFICANT,
        "recommended": cheapest,
        "sentence": sentence,
    }
