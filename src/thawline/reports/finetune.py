"""What the report on a training shows, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import plotly.graph_objects as go
from PIL import Image

from thawline.options import Parameters
from thawline.reports.html import Illustration, Recipe, Section, kedro_command


class SectionSpec(NamedTuple):
    """A part of the report: its heading, what stands under it, and its catalog entries."""

    title: str
    text: str
    entries: tuple[str, ...]


# In this order; each entry is a figure or a picture of the catalog.
SHOWN = (
    SectionSpec("Training", "", ("learning_curves", "stage_probes_figure")),
    SectionSpec(
        "Where it errs",
        "All of this is measured on the test split, which had no part in the training.",
        ("confusion_matrix", "per_class_figure", "misclassified_images"),
    ),
    SectionSpec(
        "How sure it is",
        "A classifier can be trusted to be as sure as it says where the points lie on the dotted"
        " line. Temperature scaling divides the logits by one number, fitted on the validation"
        " split; it changes no prediction, only how sure it is.",
        ("reliability_diagram",),
    ),
    SectionSpec(
        "What it looks at",
        "Parts of the image that speak for the predicted class.",
        ("attributions",),
    ),
    SectionSpec(
        "The network",
        "What lies below the thaw line runs once for each view of an image; what lies above it is"
        " trained. A stage that is frozen has not moved.",
        ("stage_figure", "weight_change_figure"),
    ),
    SectionSpec(
        "The data",
        "",
        ("class_balance", "image_sizes", "sample_images", "training_views"),
    ),
    SectionSpec(
        "Labels to look at",
        "None of these images was changed or left out; look at them before you trust the figures"
        " above. The tables with all rows are label_errors, near_duplicates and outliers.",
        ("label_errors_grid", "near_duplicates_grid", "outliers_grid"),
    ),
)
FIGURES = tuple(name for part in SHOWN for name in part.entries)


def finetune_sections(
    parameters: Parameters, figures: Mapping[str, go.Figure | Image.Image]
) -> list[Section]:
    """Return the sections of the report on a training.

    Args:
        parameters: of the run, to repeat it.
        figures: by the names of `FIGURES`; a Plotly figure with nothing in it is left out.
    """
    sections = []
    for title, text, entries in SHOWN:
        illustrations = [
            Illustration(_caption(name, figures[name]), figures[name])
            for name in entries
            if not _is_empty(figures[name])
        ]
        sections.append(Section(title, text, illustrations=illustrations))
    changed = {name: str(value) for name, value in parameters.changed().items()}
    recipe = Recipe("Command and parameters", kedro_command(changed), changed)
    text = "Every parameter that is not named here has its default."
    return [*sections, Section("Repeat it", text, recipes=[recipe])]


def accuracy_sentence(metrics: Mapping[str, float]) -> str:
    """Return the answer in a sentence, from the metrics of `evaluation.score`."""
    low, high = metrics["test_accuracy_low"], metrics["test_accuracy_high"]
    return (
        f"{metrics['test_accuracy']:.1%} of {metrics['test_images']:,.0f} test images are"
        f" classified correctly; on other images like these expect {low:.1%} to {high:.1%}."
    )


def _caption(name: str, figure: go.Figure | Image.Image) -> str:
    """Return a figure's title, or what a picture is: its title is within it."""
    title = figure.layout.title.text if isinstance(figure, go.Figure) else None
    return f"{title or name.removesuffix('_grid').replace('_', ' ').capitalize()}."


def _is_empty(figure: go.Figure | Image.Image) -> bool:
    return isinstance(figure, go.Figure) and not figure.data
