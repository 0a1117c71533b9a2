"""Write a report as one HTML file that needs nothing but a browser."""

from __future__ import annotations

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from plotly.offline import get_plotlyjs

from thawline.data.splitting import class_names
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

HEIGHT = 420  # px, of a figure that names none
LISTED = 10  # classes, up to which they are named

THE_TEST = (
    "Each row asks whether the best strategy is right more often than another on the same test"
    " images: McNemar's test, with every image's difference averaged over seeds, images of one"
    " group counted together, and the scatter between seeds added. p is how often chance alone"
    " would give so large a difference; corrected p (Holm) allows for the number of rows, the"
    " intervals do not. The best was picked on these images, so its own accuracy is a little"
    " flattered."
)


class Illustration(NamedTuple):
    """A figure or picture of a report, and the sentence above it that says what it shows."""

    caption: str
    figure: go.Figure | Image.Image


class Recipe(NamedTuple):
    """What repeats a row of a table: its name, command lines, and settings with their values."""

    name: str
    commands: str
    settings: Mapping[str, str]
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a report under one heading, whose pieces come in this order.

    Attributes:
        title: the heading.
        text: a paragraph.
        table: of texts; the first column names the row.
        illustrations: side by side where there is room and they are several.
        recipes: folded up.
    """

    title: str
    text: str = ""
    table: pd.DataFrame | None = None
    illustrations: Sequence[Illustration] = ()
    recipes: Sequence[Recipe] = ()


def html_report(
    title: str, facts: Mapping[str, str], verdict: str, sections: Sequence[Section]
) -> str:
    """Return a page that opens from the file system without a network, on a phone too.

    Its figures are drawn by the copy of plotly.js in it; page and figures follow the reader's light
    or dark scheme. All texts are escaped. The same arguments give the same page.

    Args:
        title: the heading.
        facts: what stands under it, by name: data, network, date, …
        verdict: the answer, in a sentence.
        sections: in this order.
    """
    environment = Environment(
        loader=PackageLoader("thawline"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        title=title,
        facts=facts,
        verdict=verdict,
        sections=sections,
        plain=_plain,
        data_uri=_data_uri,
        plotly_js=Markup(get_plotlyjs()),  # as it is: it is no text
    )


def data_facts(root: str, backbone: str, splits: pd.DataFrame) -> dict[str, str]:
    """Return the facts that every report on trainings begins with.

    Args:
        root: of the data.
        backbone: that is trained.
        splits: the table of `split_dataset`.
    """
    images, names = splits["split"].value_counts(), class_names(splits)
    return {
        "Data": root,
        "Backbone": backbone,
        "Classes": f"{len(names)}: {', '.join(names)}" if len(names) <= LISTED else str(len(names)),
        "Images": f"{images['train']:,} training, {images['val']:,} validation,"
        f" {images['test']:,} test",
    }


def comparison_sections(trials: Sequence[TrainingOutcome], comparison: Comparison) -> list[Section]:
    """Return what a report on a comparison shows, strategies in the order of its table."""
    table, groups = comparison.table, group_by_strategy(trials)
    accuracy = compared_accuracy(trials, table)
    cost = cost_against_accuracy(table)
    curves = compared_curves(trials, table)
    return [
        Section(
            "Strategies",
            "Means over seeds on the test split, best first. The interval is Student's t over seeds"
            " (with one seed Clopper and Pearson's over images, or their groups). Training accuracy"
            " is that of augmented images while the epoch went on, so the gap to it may be"
            " negative.",
            _strategy_table(table),
        ),
        Section("Accuracy", illustrations=[_illustrate(accuracy)]),
        Section("Cost", illustrations=[_illustrate(cost)]),
        Section("Learning curves", illustrations=[_illustrate(curves)]),
        Section(
            "Confusion",
            "Test images by true and predicted class, summed over seeds. The stronger the color,"
            " the larger the share of the true class.",
            illustrations=[_confusion(name, groups[name]) for name in table["strategy"]],
        ),
        *([] if comparison.pairs.empty else [_pairs_section(comparison.pairs)]),
        Section(
            "Repeat a row",
            "Every parameter that is not named here has its default.",
            recipes=[_recipe(name, groups[name]) for name in table["strategy"]],
        ),
    ]


def kedro_command(settings: Mapping[str, str]) -> str:
    """Return the command line that repeats a training, ready for a shell.

    Values with a comma are left out, as Kedro takes a comma for the next parameter's beginning.
    """
    given = ",".join(
        f"{name}={'null' if value == 'None' else value}"
        for name, value in settings.items()
        if "," not in value
    )
    arguments = [shlex.quote(f"--params={given}")] if given else []
    return " ".join(["kedro run --pipeline=finetune", *arguments])


def _illustrate(figure: go.Figure) -> Illustration:
    return Illustration(figure.layout.title.text + ".", figure)


def _confusion(name: str, trials: Sequence[TrainingOutcome]) -> Illustration:
    figure = confusion_matrix(pool_confusion(trials))
    return Illustration(name, figure.update_traces(showscale=False))


def _data_uri(figure: go.Figure | Image.Image) -> str:
    """Return a picture as text that an <img> shows, or nothing for a figure."""
    if isinstance(figure, go.Figure):
        return ""
    buffer = io.BytesIO()
    figure.save(buffer, format="webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Return a figure for the page, which has its title as caption and colors of its own."""
    plain = json.loads(figure.to_json())  # arrays as plotly.js wants them, null for NaN
    layout = plain["layout"]
    for name in ("template", "title"):
        layout.pop(name, None)
    layout.get("margin", {}).pop("t", None)  # the room at the top was the title's
    layout.setdefault("height", HEIGHT)
    return plain


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
        "Parameters trained": table["trainable_parameters"].map("{:,}".format),
        "Seeds": table["seeds"].map(str),
    }
    return pd.DataFrame(shown).replace({"nan%": MISSING, "+nan": MISSING})


def _pairs_section(pairs: pd.DataFrame) -> Section:
    best = pairs["best"].iloc[0]
    shown = {
        f"{best} against": pairs["strategy"],
        "Points [95 %]": [
            format_points(*limits).replace(" points", "")
            for limits in zip(pairs["difference"], pairs["low"], pairs["high"], strict=True)
        ],
        "p": [format_p(value).removeprefix("= ") for value in pairs["p_value"]],
        "Corrected p": [format_p(value).removeprefix("= ") for value in pairs["p_holm"]],
    }
    return Section("Is the best really better?", THE_TEST, pd.DataFrame(shown))


def _recipe(name: str, trials: Sequence[TrainingOutcome]) -> Recipe:
    settings = [
        {"strategy": trial.strategy, "seed": str(trial.seed)} | trial.settings for trial in trials
    ]
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
