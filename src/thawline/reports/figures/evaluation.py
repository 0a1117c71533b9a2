"""Draw the confusion matrix, calibration, metrics per class and misclassified images."""

from pathlib import Path

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go
from PIL import Image
from plotly.subplots import make_subplots

from thawline.evaluation.predictions import worst_first
from thawline.reports.figures.grids import image_grid, thumbnail
from thawline.reports.figures.style import COLORS, class_axis, finish, legend_below

MAX_NUMBERED_CLASSES = 30  # up to which the cells of the confusion matrix hold numbers
MAX_SHOWN = 25  # misclassified images
CLASS_HEIGHT = 30  # px, of a class with its two bars


def confusion_matrix(confusion: pd.DataFrame) -> go.Figure:
    """Return counts of true against predicted classes, colored by the share of the true class."""
    share = confusion.div(confusion.sum(axis=1).clip(lower=1), axis=0)
    figure = px.imshow(
        share, zmin=0, zmax=1, color_continuous_scale="Blues", aspect="auto",
        labels={"x": "Predicted class", "y": "True class", "color": "Share of the true class"},
    )  # fmt: skip
    figure.update_traces(
        text=confusion,
        texttemplate="%{text}" if len(confusion) <= MAX_NUMBERED_CLASSES else None,
        hovertemplate="true %{y}, predicted %{x}: %{text} (%{z:.1%})<extra></extra>",
    )
    figure.update_coloraxes(colorbar={"tickformat": ".0%", "title": {"side": "right"}})
    figure.update_xaxes(class_axis(confusion)).update_yaxes(class_axis(confusion))
    return finish(figure, "Confusion matrix (test split)")


def reliability_diagram(
    before: pd.DataFrame, after: pd.DataFrame, errors: dict[str, float]
) -> go.Figure:
    """Return accuracy by confidence, with and without temperature scaling, and image counts.

    `before` and `after` are tables of `calibration.reliability`; `errors` has temperature,
    test_calibration_error and the same _uncalibrated and _by_chance.
    """
    names = {
        f"uncalibrated: ECE {errors['test_calibration_error_uncalibrated']:.1%}": before,
        f"temperature {errors['temperature']:.2f}: ECE"
        f" {errors['test_calibration_error']:.1%}": after,
    }
    bins = pd.concat(names, names=["classifier"]).reset_index("classifier")
    figure = make_subplots(
        rows=2, cols=1, shared_xaxes=True, row_heights=[0.72, 0.28], vertical_spacing=0.06
    )
    figure.add_scatter(
        x=[0, 1],
        y=[0, 1],
        name=f"perfect calibration: ECE {errors['test_calibration_error_by_chance']:.1%} by chance",
        mode="lines",
        line={"color": "gray", "dash": "dot"},
        hoverinfo="skip",
    )
    for row, column in enumerate(("accuracy", "images"), start=1):
        curves = px.line(
            bins, "confidence", column, color="classifier", symbol="classifier", markers=True,
            hover_data={"confidence": ":.1%", "accuracy": ":.1%", "images": True},
            color_discrete_sequence=COLORS,
        )  # fmt: skip
        curves.update_traces(marker={"size": 9}, showlegend=row == 1)
        figure.add_traces(curves.data, rows=row, cols=1)
    figure.update_xaxes(range=[0, 1.03], tickformat=".0%")
    figure.update_xaxes(title_text="Confidence", row=2, col=1)
    figure.update_yaxes(title_text="Accuracy", range=[0, 1.05], tickformat=".0%", row=1, col=1)
    figure.update_yaxes(title_text="Images", rangemode="tozero", nticks=4, row=2, col=1)
    return finish(figure, "Reliability diagram (test split)", **legend_below(500, 3))


def risk_coverage_curve(curve: pd.DataFrame) -> go.Figure:
    """Return accuracy by the share of images that are answered, see `calibration.risk_coverage`."""
    figure = px.line(curve, "answered", "accuracy", color_discrete_sequence=COLORS)
    figure.update_xaxes(title_text="Share of images answered, surest first", tickformat=".0%")
    figure.update_yaxes(title_text="Accuracy of these", tickformat=".1%", rangemode="normal")
    return finish(figure, "Accuracy if only the surest are answered (test split)")


def per_class_bars(per_class: pd.DataFrame) -> go.Figure:
    """Return precision and recall of each class, the class with the lowest F1 on top."""
    meanings = {
        "recall": "recall: of images of the class",
        "precision": "precision: of predictions of the class",
    }
    rows = per_class.sort_values("f1", kind="stable").rename(columns=meanings)
    figure = px.bar(
        rows, [*meanings.values()], "label", barmode="group", orientation="h",
        hover_data={"images": True, "value": ":.1%"}, labels={"value": "Share", "variable": ""},
        color_discrete_sequence=COLORS,
    )  # fmt: skip
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%")
    axis = class_axis(rows["label"])
    figure.update_yaxes(axis, title=None, dtick=1, autorange="reversed", automargin=True)
    title = "Precision and recall per class (test split), lowest F1 on top"
    return finish(figure, title, bargap=0.25, **legend_below(150 + CLASS_HEIGHT * len(rows), 2))


def mistakes_grid(predictions: pd.DataFrame) -> Image.Image:
    """Return the most confidently misclassified images with file, true and predicted class."""
    rows = worst_first(predictions)
    rows = rows[~rows["correct"]]
    shown = rows.head(MAX_SHOWN)
    captions = [
        f"{Path(row['path']).name}\ntrue {row['label']}\npredicted {row['prediction']}"
        f" ({row['confidence']:.1%})"
        for row in shown.to_dict("records")
    ]
    return image_grid(
        f"{len(rows)} of {len(predictions)} test images misclassified, most confident first",
        [thumbnail(path) for path in shown["path"]],
        captions,
        empty=f"All {len(predictions)} test images are classified correctly.",
    )
