"""List the sections of the report on a fine-tuned classifier."""

from collections.abc import Mapping

import plotly.graph_objects as go
from PIL import Image

from thawline.options import Parameters
from thawline.reports.html import Recipe, Section, kedro_command, with_captions

SECTIONS: tuple[tuple[str, str, tuple[str, ...]], ...] = (  # heading, text, catalog entries
    ("Training", "", ("learning_curves", "stage_contributions", "candidates_figure")),
    (
        "Errors",
        "Measured on the test split, which had no part in training.",
        ("confusion_matrix", "per_class_figure", "misclassified_images"),
    ),
    (
        "Calibration",
        "The confidence of a calibrated classifier equals its accuracy: its points lie on the"
        " dotted line. ECE is the expected calibration error. Temperature scaling divides the"
        " logits by one number, fitted on the validation split. It changes confidences, but no"
        " prediction.",
        ("reliability_diagram",),
    ),
    (
        "Attributions",
        "Parts of the image that contribute to the predicted class.",
        ("attributions",),
    ),
    (
        "Network",
        "Layers below the thaw line run once per image view; layers above it are trained. The"
        " weights of a frozen stage do not change.",
        ("stage_figure", "weight_change_figure"),
    ),
    ("Data", "", ("class_balance", "image_sizes", "sample_images", "training_views")),
    (
        "Label problems",
        "These images were neither changed nor removed. Check them before you rely on the metrics"
        " above. The tables label_errors, near_duplicates and outliers have all rows.",
        ("label_errors_grid", "near_duplicates_grid", "outliers_grid"),
    ),
)
VERDICT = (
    "{test_accuracy:.1%} of {test_images:,.0f} test images are classified correctly (95 % interval"
    " {test_accuracy_low:.1%} to {test_accuracy_high:.1%})."
)
FIGURES = tuple(name for *_, entries in SECTIONS for name in entries)


def finetune_sections(
    parameters: Parameters, figures: Mapping[str, go.Figure | Image.Image]
) -> list[Section]:
    """Return the sections of the report on a training.

    `figures` has the names of `FIGURES`; an empty Plotly figure is left out.
    """
    sections = [
        Section(title, text, illustrations=with_captions({name: figures[name] for name in names}))
        for title, text, names in SECTIONS
    ]
    changed = {name: str(value) for name, value in parameters.changed().items()}
    recipe = Recipe("Command and parameters", kedro_command(changed), changed)
    text = "Other parameters have their defaults."
    return [*sections, Section("Reproduce", text, recipes=[recipe])]
