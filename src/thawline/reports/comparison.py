"""Show a comparison of strategies: on the console, and as the sections of a report."""

from collections.abc import Sequence

import pandas as pd
from rich import box
from rich.markup import escape
from rich.table import Table

from thawline.evaluation.comparison import (
    Comparison,
    Trainings,
    format_p,
    format_points,
    format_seconds,
)
from thawline.evaluation.metrics import count_confusion
from thawline.reports import finetune
from thawline.reports.figures.comparison import compared_curves, comparison_figure
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.html import Recipe, Section, closing_sections, kedro_command, with_captions

STRATEGIES = (
    "Means over seeds on the test split, best first. The interval is Student's t over seeds; with"
    " one seed it is Clopper and Pearson's over images or their groups. Training accuracy is"
    " measured on augmented images during the epoch, so the gap to it, in points, may be negative."
    " The time is that of the fastest seed, since the first one fills the cache for the others."
    " A soup is one network, with the mean weights of those seeds that do not lower validation"
    " accuracy; its interval is over images, its time that of all seeds. It is not tested below."
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
TERMS = {
    "95 % interval": finetune.TERMS["95 % interval"],
    "Validation and test split": finetune.TERMS["Validation and test split"],
    "Seed": "The number that decides the new head, the order of images and the random views.",
    "Points": "Percentage points of accuracy: from 90 % to 92 % are two.",
    "Gap": "Training accuracy minus test accuracy. A large one means that the network knows its"
    " training images by heart.",
    "p": "How often chance alone would give two equally good strategies so large a difference."
    " Below 0.05 it is usually called significant.",
    "McNemar's test": "It looks only at images that one of two strategies gets right and the other"
    " wrong.",
    "Loss": finetune.TERMS["Loss, nats"],
}


def comparison_sections(trainings: Trainings, comparison: Comparison) -> list[Section]:
    """Return the sections of the report, strategies in the order of the comparison's table."""
    table, predictions = comparison.table, trainings.predictions
    matrices, recipes = {}, []
    for name in table["strategy"]:
        counts = count_confusion(predictions[predictions["strategy"] == name])
        matrices[name] = confusion_matrix(counts).update_coloraxes(showscale=False)
        recipes.append(_recipe(name, [s for s in trainings.settings if s["strategy"] == name]))
    results = {"": comparison_figure(trainings.table, table)}
    curves = {"": compared_curves(trainings.histories, table)}
    sections = [
        Section("Strategies", STRATEGIES, strategy_table(comparison.shown)),
        Section("Accuracy and cost", illustrations=with_captions(results)),
        Section("Learning curves", illustrations=with_captions(curves)),
        Section("Confusion matrices", CONFUSION, illustrations=matrices),
    ]
    if not comparison.pairs.empty:
        pairs, best = comparison.pairs, comparison.verdict["best"]
        limits = pairs[["difference", "low", "high"]].to_numpy()
        shown = {
            f"{best} against": pairs["strategy"],
            "Points [95 %]": [format_points(*each) for each in limits],
            "p": pairs["p_value"].map(format_p).str.removeprefix("= "),
            "Corrected p": pairs["p_holm"].map(format_p).str.removeprefix("= "),
        }
        sections.append(Section("Significance", SIGNIFICANCE, pd.DataFrame(shown)))
    return [*sections, *closing_sections(recipes, TERMS)]


def strategy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table of `compare` as texts; a line of a title has at most ten letters."""
    limits = 100 * table[["test_accuracy_low", "test_accuracy_high"]].to_numpy()
    intervals = [f"[{low:.1f}, {high:.1f}]".replace("100.0", "100") for low, high in limits]
    shown = {
        "Strategy": table["strategy"],
        "Test\naccuracy": table["test_accuracy"].map("{:.1%}".format),
        "95 %\ninterval": intervals,
        "Test\nloss": table["test_loss"].map("{:.3f}".format),
        "Training\naccuracy": table["train_accuracy"].map("{:.1%}".format),
        "Gap": (100 * table["generalization_gap"]).map("{:+.1f}".format),
        "Time": table["seconds"].map(format_seconds),
        "Trainable\nparameters": table["trainable_parameters"].map("{:,}".format),
        "Seeds": table["seeds"].map(str),
    }
    return pd.DataFrame(shown).replace({"nan%": "-", "+nan": "-"})


def console_table(table: pd.DataFrame) -> Table:
    """Return the table of `compare` for a console of 80 columns."""
    texts = strategy_table(table).drop(columns="Seeds")
    shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False)
    shown.add_column("Strategy", overflow="fold", min_width=10)
    for title in texts.columns[1:]:
        shown.add_column(title, justify="right", no_wrap=True)
    for row in texts.itertuples(index=False):
        shown.add_row(*map(escape, row))
    return shown


def _recipe(name: str, settings: Sequence[dict[str, str]]) -> Recipe:
    """Return the commands that reproduce the trainings of a strategy, and their settings."""
    columns = pd.DataFrame(settings).items()
    values = {str(key): " | ".join(column.dropna().unique()) for key, column in columns}
    return Recipe(name, "\n".join(map(kedro_command, settings)), values)
