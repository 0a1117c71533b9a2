"""Compare strategies by their trainings, and recommend one."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from thawline.evaluation.significance import CONFIDENCE, SIGNIFICANT, holm_correction, paired_test

DECIMALS_BELOW_SECONDS = 10  # from so many seconds on, decimals are noise
MAX_EXTRA_SECONDS = 10  # that a more accurate strategy may take, to count as cheap, too


class Trainings(NamedTuple):
    """The trainings of a comparison, strategy by strategy; the splits are the same for all.

    The tables have the columns strategy and seed.
    """

    table: pd.DataFrame  # one row per training: best_epoch (0: none), seconds, `compute_metrics`
    histories: pd.DataFrame  # one row per epoch
    predictions: pd.DataFrame  # of the test split, see `predict_split`
    settings: list[dict[str, str]]  # to repeat each training: a parameter's dotted name, its value
    # By strategy, of the average of some of its networks: seeds (their number), `compute_metrics`.
    soups: Mapping[str, dict[str, Any]] = {}


class Comparison(NamedTuple):
    """Which strategy is best, and how certain that is.

    Attributes:
        table: one row per strategy, best first, with means over seeds: strategy, seeds (their
            number), test_accuracy with test_accuracy_low and _high (95 % interval: Student's t over
            seeds, with one seed that of `compute_metrics`), test_loss (nats), train_accuracy (of
            augmented views during the epoch that was kept), generalization_gap (train_accuracy -
            test_accuracy), seconds (of the fastest seed: an earlier one may have filled the cache),
            trainable_parameters (of the phase with most).
        pairs: best, strategy, the fields of `paired_test`, and p_holm, corrected for the number of
            rows: one row per strategy but the best.
        verdict: best, next, difference, low, high, p_value (p_holm of the next), significant,
            recommended (a strategy), sentence (all that in words).
        shown: `table`, and a row for each soup, which is in no test: its seconds are those of all
            seeds of the strategy, and its interval is over images.
    """

    table: pd.DataFrame
    pairs: pd.DataFrame
    verdict: dict[str, Any]
    shown: pd.DataFrame

    def summary(self) -> dict[str, Any]:
        """Return all of it for JSON: the verdict, and tables as lists of rows, null for NaN."""
        rows = {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in (("strategies", self.shown), ("pairs", self.pairs))
        }
        return {"verdict": self.verdict, **rows}


def compare(trainings: Trainings) -> Comparison:
    """Rank the strategies, and test whether the best beats each of the others.

    Equal test accuracies are ordered by seconds. If the predictions have groups, the images of a
    group are tested together.
    """
    table = _summarize(trainings).sort_values(
        ["test_accuracy", "seconds", "strategy"], ascending=[False, True, True], ignore_index=True
    )
    predictions, seeds = trainings.predictions, table.set_index("strategy")["seeds"]
    is_right = (predictions["label"] == predictions["prediction"]).groupby(predictions["strategy"])
    correct = {name: rows.to_numpy().reshape(seeds[name], -1) for name, rows in is_right}
    best, *others = table["strategy"]
    groups = predictions["group"][: correct[best].shape[1]] if "group" in predictions else None
    tests = [(best, name, *paired_test(correct[best], correct[name], groups)) for name in others]
    columns = ["best", "strategy", "difference", "low", "high", "p_value"]
    pairs = pd.DataFrame(tests, columns=columns).astype({"p_value": float})
    pairs["p_holm"] = holm_correction(pairs["p_value"].to_numpy())
    shown = pd.concat([table, *_soup_rows(trainings, table)], ignore_index=True)
    return Comparison(table, pairs, _decide(table, pairs), shown)


def format_p(p_value: float) -> str:
    """Return a p-value as it is printed: `= 0.02`, `< 0.001`."""
    return "< 0.001" if p_value < 0.001 else f"= {p_value:.2g}"  # noqa: PLR2004


def format_points(difference: float, low: float, high: float) -> str:
    """Return a difference of accuracies with its interval, in percentage points."""
    return f"{100 * difference:+.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def format_seconds(seconds: float) -> str:
    """Return a time as it is printed: `7.1 s`, `62 s`."""
    return f"{seconds:.1f} s" if seconds < DECIMALS_BELOW_SECONDS else f"{seconds:,.0f} s"


def _summarize(trainings: Trainings) -> pd.DataFrame:
    """Return the table of `compare` in the order of names."""
    by_strategy = trainings.table.groupby("strategy")
    best = trainings.table.set_index(["strategy", "seed"])["best_epoch"]
    histories = trainings.histories.set_index(["strategy", "seed"])
    kept = histories[histories["epoch"] == best.reindex(histories.index)]
    # Rounded: sums in another order of seeds must not tell equal strategies apart.
    accuracy = by_strategy["test_accuracy"].mean().round(12)
    limits = pd.DataFrame({name: _interval(rows) for name, rows in by_strategy}, ["low", "high"]).T
    train = kept.groupby("strategy")["train_accuracy"].mean().reindex(accuracy.index).astype(float)
    parameters = histories.groupby("strategy")["trainable_parameters"].max()
    columns = {
        "seeds": by_strategy.size(),
        "test_accuracy": accuracy,
        "test_accuracy_low": limits["low"],
        "test_accuracy_high": limits["high"],
        "test_loss": by_strategy["test_loss"].mean(),
        "train_accuracy": train,
        "generalization_gap": train - accuracy,
        "seconds": by_strategy["seconds"].min(),
        "trainable_parameters": parameters.reindex(accuracy.index, fill_value=0).astype(int),
    }
    return pd.DataFrame(columns).rename_axis("strategy").reset_index()


def _soup_rows(trainings: Trainings, table: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Yield a table of one row for each soup."""
    seconds = trainings.table.groupby("strategy")["seconds"].sum()
    for strategy, soup in trainings.soups.items():
        row = table[table["strategy"] == strategy]
        own = {name: soup[name] for name in row if name in soup}
        unknown = dict.fromkeys(("train_accuracy", "generalization_gap"), np.nan)
        own["seconds"] = seconds[strategy]
        yield row.assign(strategy=f"{strategy}.soup", **own, **unknown)


def _interval(rows: pd.DataFrame) -> tuple[float, float]:
    """Return the 95 % interval of the mean test accuracy, over images if there is one seed."""
    if len(rows) == 1:
        return rows["test_accuracy_low"].item(), rows["test_accuracy_high"].item()
    values = rows["test_accuracy"].to_numpy()
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stats.sem(values)
    return float(max(0, np.mean(values) - half)), float(min(1, np.mean(values) + half))


def _decide(table: pd.DataFrame, pairs: pd.DataFrame) -> dict[str, Any]:
    """Return the verdict: the best, or the cheapest of those that do not differ significantly.

    Of several that are about as cheap, it is the most accurate.
    """
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
    least = seconds[equals].min()  # `equals` come in the order of accuracy
    taken = next(name for name in equals if seconds[name] <= least + MAX_EXTRA_SECONDS)
    rank = "the cheapest" if seconds[taken] == least else "about as cheap as any"
    advice = f"{taken}, {rank} of {len(equals)} without a significant difference"
    takes = seconds.map(format_seconds)
    corrected = "corrected " if len(pairs) > 1 else ""
    found = f"{format_points(**limits)} points, {corrected}p {format_p(p_value)}"
    if p_value < SIGNIFICANT:
        sentence = f"{best} beats {other}: {found}, in {takes[best]} instead of {takes[other]}."
        if taken != best:
            sentence += f" But take {advice} ({takes[taken]})."
    else:
        compared = takes[best] if taken == best else f"{takes[taken]}; {best} {takes[best]}"
        sentence = (
            f"No significant difference between {best} and {other}: {found}."
            f" Take {advice} ({compared})."
        )
    if (table["seeds"] == 1).any():
        sentence += " With one seed, the variation between seeds is unknown."
    return {
        "best": best,
        "next": other,
        **limits,
        "p_value": p_value,
        "significant": p_value < SIGNIFICANT,
        "recommended": taken,
        "sentence": sentence,
    }
