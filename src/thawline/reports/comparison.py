"""List the sections of the report on a comparison of strategies."""

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from thawline.evaluation.comparison import (
    MISSING,
    Comparison,
    TrainingOutcome,
    format_p,
    format_points,
    format_seconds,
    group_by_strategy,
    pool_confusion,
)
from thawline.reports.figures.comparison import (
    compared_accuracy,
    compared_curves,
    cost_against_accuracy,
)
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.html import Illustration, Recipe, Section, kedro_command

STRATEGIES = (
    "Means over seeds on the test split, best first. The interval is Student's t over seeds; with"
    " one seed it is Clopper and Pearson's over images or their groups. Training accuracy is"
    " measured on augmented images during the epoch, so the gap to it may be negative."
)
CONFUSION = (
    "Test images by true and predicted class, summed over seeds. Stronger colors mean a larger"
    " share of the true class."
)
SIGNIFICANCE = (
    "Each row compares the best strategy with another one on the same test images: McNemar's test,"
    " with the difference of each image averaged over seeds, images of a group counted together,"
    " and the variance between seeds added. p is the probability of so large a difference by"
    " chance. Corrected p (Holm) allows for the number of rows; the intervals do not. The best"
    " strategy was selected on these images, so its own accuracy is slightly optimistic."
)


def comparison_sections(trials: Sequence[TrainingOutcome], comparison: Comparison) -> list[Section]:
    """Return the sections of the report, strategies in the order of the comparison's table."""
    table, groups = comparison.table, group_by_strategy(trials)
    names = table["strategy"]
    sections = [
        Section("Strategies", STRATEGIES, _strategy_table(table)),
        Section("Accuracy", illustrations=[_illustrate(compared_accuracy(trials, table))]),
        Section("Cost", illustrations=[_illustrate(cost_against_accuracy(table))]),
        Section("Learning curves", illustrations=[_illustrate(compared_curves(trials, table))]),
        Section(
            "Confusion matrices",
            CONFUSION,
            illustrations=[_confusion(name, groups[name]) for name in names],
        ),
    ]
    if not comparison.pairs.empty:
        sections.append(Section("Significance", SIGNIFICANCE, _pairs_table(comparison.pairs)))
    recipes = [_recipe(name, groups[name]) for name in names]
    return [
        *sections,
        Section("Reproduce", "Other parameters have their defaults.", recipes=recipes),
    ]


def _illustrate(figure: go.Figure) -> Illustration:
    return Illustration(f"{figure.layout.title.text}.", figure)


def _confusion(name: str, trials: Sequence[TrainingOutcome]) -> Illustration:
    figure = confusion_matrix(pool_confusion(trials))
    return Illustration(name, figure.update_traces(showscale=False))


def _strategy_table(table: pd.DataFrame) -> pd.DataFrame:
    percent, points = "{:.1%}".format, "{:+.1f}".format
    limits = zip(table["test_accuracy_low"], table["test_accuracy_high"], strict=True)
    shown = {
        "Strategy": table["strategy"],
        "Test accuracy": table["test_accuracy"].map(percent),
        "95 % interval": [f"{percent(low)} to {percent(high)}" for low, high in limits],
        "Test loss": table["test_loss"].map("{:.3f}".format),
        "Training accuracy": table["train_accuracy"].map(percent),
        "Gap (points)": (100 * table["generalization_gap"]).map(points),
        "Time": table["seconds"].map(format_seconds),
        "Trainable parameters": table["trainable_parameters"].map("{:,}".format),
        "Seeds": table["seeds"].map(str),
    }
    return pd.DataFrame(shown).replace({"nan%": MISSING, "+nan": MISSING})


def _pairs_table(pairs: pd.DataFrame) -> pd.DataFrame:
    limits = zip(pairs["difference"], pairs["low"], pairs["high"], strict=True)
    return pd.DataFrame(
        {
            f"{pairs['best'].iloc[0]} against": pairs["strategy"],
            "Points [95 %]": [format_points(*each).replace(" points", "") for each in limits],
            "p": [format_p(value).removeprefix("= ") for value in pairs["p_value"]],
            "Corrected p": [format_p(value).removeprefix("= ") for value in pairs["p_holm"]],
        }
    )


def _recipe(name: str, trials: Sequence[TrainingOutcome]) -> Recipe:
    """Return the commands that reproduce the trainings of a strategy, and their settings."""
    settings = [trial.settings for trial in trials]
    values = {
        key: list(dict.fromkeys(each[key] for each in settings if key in each))
        for key in settings[0]
    }
    left_out = [key for key, found in values.items() if any("," in value for value in found)]
    note = (
        f"Values with commas do not fit on a command line: put {', '.join(left_out)} into"
        " conf/local/parameters.yml."
    )
    return Recipe(
        name,
        "\n".join(kedro_command(each) for each in settings),
        {key: " | ".join(found) for key, found in values.items()},
        note if left_out else "",
    )
