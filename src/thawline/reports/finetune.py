"""List the sections of the report on a fine-tuned classifier."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from thawline.options import Parameters
from thawline.reports.html import Recipe, Section, closing_sections, kedro_command, with_captions


class Part(NamedTuple):
    """A section of the report, and the catalog entries in it."""

    title: str
    figures: tuple[str, ...]
    tables: tuple[str, ...] = ()
    text: str = ""


PARTS = (
    Part(
        "Training",
        ("learning_curves", "stage_contributions", "candidates_figure"),
        ("history", "candidates"),
    ),
    Part(
        "Errors",
        ("confusion_matrix", "per_class_figure", "misclassified_images"),
        ("per_class_metrics", "weak_spots"),
        "Measured on the test split, which had no part in training.",
    ),
    Part(
        "Calibration",
        ("reliability_diagram", "risk_coverage_figure"),
        ("prediction_sets",),
        text="The confidence of a calibrated classifier equals its accuracy: its points lie on the"
        " dotted line. ECE is the expected calibration error. Temperature scaling divides the"
        " logits by one number, fitted on the validation split, if that makes its labels more"
        " probable by more than chance. It changes confidences, but no prediction. A prediction set"
        " holds the true class with a chosen probability (serving.coverage).",
    ),
    Part(
        "Attributions",
        ("attributions",),
        ("explained_images",),
        "Parts of the image that contribute to the predicted class.",
    ),
    Part(
        "Network",
        ("stage_figure", "weight_change_figure"),
        ("stage_table", "freeze_report", "weight_change"),
        "Layers below the thaw line run once per image view; layers above it are trained. The"
        " weights of a frozen stage do not change.",
    ),
    Part(
        "Data",
        ("class_balance", "image_sizes", "sample_images", "training_views"),
        ("quarantine", "applied_corrections"),
    ),
    Part(
        "Label problems",
        ("label_errors_grid", "near_duplicates_grid", "outliers_grid"),
        ("label_errors", "near_duplicates", "outliers"),
        "These images were neither changed nor removed. Check them before you rely on the metrics"
        " above.",
    ),
)
TERMS = {
    "95 % interval": "Other test images of the same kind would give another accuracy; in 95 of 100"
    " such tests, the interval holds the true one.",
    "Validation and test split": "Validation images choose the best epoch and strategy; test images"
    " are looked at once, at the end.",
    "C": "How freely a linear head may fit its training images: the larger, the freer. It is chosen"
    " by cross-validation, on images that the head was not fitted to.",
    "Loss, nats": "How surprised the network is by the true class, as minus the natural logarithm"
    " of the probability that it gave: 0 is certain and right, 0.69 a probability of one half.",
    "Precision, recall, F1": "Of the images called a class, how many are of it; of the images of a"
    " class, how many are called so; and the harmonic mean of both. Macro F1 is the mean over"
    " classes, each counting the same.",
    "Weak spots": "Parts of the test images, such as a class, a group, dark images or a file type."
    " A p-value below 0.05 says that the part is more often wrong than the other images by more"
    " than chance, though so many parts were looked at.",
    "ECE": "Expected calibration error: by how much, on average, the confidence differs from the"
    " share that is right.",
    "Prediction set": "The classes that an image may well have; the set holds the true one with the"
    " chosen probability, over many images like the validation images.",
    "Thaw line": "The border between what is frozen and what is trained. Below it, each image view"
    " is computed once, ever.",
    "CKA": "How similar the outputs of a stage are before and after training, from 0 to 1.",
    "Outlier": "An image that is far from its nearest neighbors in the features of the network.",
}
VERDICT = (
    "{test_accuracy:.1%} of {test_images:,.0f} test images are classified correctly (95 % interval"
    " {test_accuracy_low:.1%} to {test_accuracy_high:.1%})."
)
ENTRIES = tuple(name for part in PARTS for name in (*part.figures, *part.tables))


def finetune_sections(parameters: Parameters, entries: Mapping[str, Any]) -> list[Section]:
    """Return the sections of the report on a training.

    `entries` has Plotly figures, pictures and tables by the names of `ENTRIES`; empty figures and
    tables are left out.
    """
    sections = [
        Section(
            part.title,
            part.text,
            illustrations=with_captions({name: entries[name] for name in part.figures}),
            tables={name: entries[name] for name in part.tables if len(entries[name])},
        )
        for part in PARTS
    ]
    changed = {name: str(value) for name, value in parameters.changed().items()}
    recipe = Recipe("Command and parameters", kedro_command(changed), changed)
    return [*sections, *closing_sections([recipe], TERMS)]
