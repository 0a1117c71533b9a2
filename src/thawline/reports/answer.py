"""The answer of a run: what it came to, and what to do next."""

from collections.abc import Callable, Mapping
from typing import Any

from thawline.evaluation.significance import SIGNIFICANT
from thawline.evaluation.weak_spots import describe_weakest

Rows = list[tuple[str, str]]  # what it is, and a text

ACCURACY = (
    "{test_accuracy:.1%} of {test_images:,.0f} test images are right"
    " (95 % interval {test_accuracy_low:.1%} to {test_accuracy_high:.1%})"
)
PROBLEMS = (
    "{label_errors} probable label errors, {near_duplicates} near-duplicates in two splits,"
    " {outliers} outliers: the report shows them"
)


def _strategy(choice: Mapping[str, str]) -> str:
    """Return the strategy and why it is the one."""
    reason = choice["strategy_reason"]
    name = choice["chosen_strategy"]
    return reason if reason.startswith(f"{name}:") else f"{name}, {reason}"


def _predicted(summary: Mapping[str, Any]) -> str:
    bad = summary["unreadable_files"]
    unreadable = f", of which {bad} cannot be read" if bad else ""
    unlike = summary["refused_images"]
    refused = f"; {unlike} are unlike the training images and have no label" if unlike else ""
    return f"{summary['files']} files by {summary['predicted_by']}{unreadable}{refused}"


def _compared(found: Mapping[str, float]) -> str:
    p_value = found["drift_p_value"]
    return f"{'unlike' if p_value < SIGNIFICANT else 'like'} the held-out ones (p = {p_value:.2g})"


# Texts by catalog entries, in the order of an answer.
TEXTS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "metrics": ("Accuracy", lambda metrics: ACCURACY.format(**metrics)),
    "weak_spots": ("Weakest", describe_weakest),
    "comparison": ("Result", lambda comparison: str(comparison["verdict"]["sentence"])),
    "strategy_choice": ("Strategy", _strategy),
    "registration": ("Champion", lambda registration: registration["registration_reason"]),
    "label_problems": ("Labels", lambda counts: PROBLEMS.format(**counts)),
    "suggested_lr": (
        "Learning rate",
        lambda found: "{0:.2g}: kedro run --pipeline=finetune --params=training.lr={0:.2g}".format(
            found["suggested_lr"]
        ),
    ),
    "best_parameters": (
        "Best",
        lambda text: (
            text.partition("Written")[0].strip("# ") + " kedro run --env=best --pipeline=finetune"
        ),
    ),
    "prediction_summary": ("Predicted", _predicted),
    "drift": ("Images", _compared),
}
FILES = {  # by the entries that they hold
    "latest_report": "Report",
    "splits": "Splits",
    "onnx_model": "ONNX",
    "attributions": "Picture",
    "folder_predictions": "Table",
    "lr_curve": "Curve",
    "sweep_trials": "Trials",
}
ASIDE = {"splits", "attributions"}  # not shown where there is more


def answer(entries: Mapping[str, Any], files: Mapping[str, str]) -> Rows:
    """Return the rows of an answer.

    `entries` are what a run has saved in the entries of `TEXTS`, `files` are the paths of those in
    `FILES`.
    """
    said = [(name, text(entries[e])) for e, (name, text) in TEXTS.items() if e in entries]
    rows = [(name, text) for name, text in said if text]
    if registration := entries.get("registration"):
        rows.append(("Predict", registration["next_prediction"]))
    shown = {entry: path for entry, path in files.items() if not (rows and entry in ASIDE)}
    return rows + [(FILES[entry], path) for entry, path in shown.items()]
