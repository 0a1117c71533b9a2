"""The page that says whether images are like those that a classifier was evaluated on."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import pandas as pd

from thawline.evaluation.significance import SIGNIFICANT
from thawline.reports.figures.grids import image_grid, thumbnail
from thawline.reports.html import Section, html_report

MAX_SHOWN = 25


def drift_page(
    root: str,
    count: int,
    measured: Mapping[str, float],
    classes: pd.DataFrame,
    images: pd.DataFrame,
) -> str:
    """Return the page on images at `root`, compared with `count` held-out ones.

    `measured` has drift_p_value and drift_p_features, `classes` is the table of
    `evaluation.drift.compare_classes`; `images` have path, prediction and distance, the furthest
    first.
    """
    p_value = measured["drift_p_value"]
    found = "differ from" if p_value < SIGNIFICANT else "cannot be told from"
    facts = {
        "Images": f"{root}: {len(images):,}",
        "Compared with": f"{count:,} validation and test images",
        "p-value": f"{p_value:.2g}; of the features alone {measured['drift_p_features']:.2g}",
        "Date": f"{datetime.now():%Y-%m-%d %H:%M}",
    }
    shown = images.head(MAX_SHOWN)
    pairs = zip(shown["path"], shown["prediction"], shown["distance"], strict=True)
    grid = image_grid(
        "Furthest images",
        [thumbnail(path) for path in shown["path"]],
        [f"{Path(path).name}\n{label}, distance {distance:.2f}" for path, label, distance in pairs],
    )
    texts = pd.DataFrame(
        {
            "class": classes["label"],
            "held-out images": classes["share_before"].map("{:.1%}".format),
            "these images": classes["share_now"].map("{:.1%}".format),
            "p-value (Holm)": classes["p_value"].map("{:.2g}".format),
        }
    )
    sections = [
        Section(
            "Classes",
            "How often the classifier says each class. A class has moved if its p-value is below"
            f" {SIGNIFICANT:g}.",
            table=texts,
        ),
        Section(
            "Furthest images",
            "These are furthest from the held-out images in the features of the network.",
            illustrations={"Furthest images.": grid},
            tables={"drift_images": images.assign(path=[Path(p).name for p in images["path"]])},
        ),
    ]
    verdict = f"These images {found} those of the classifier's evaluation (p = {p_value:.2g})."
    return html_report("Drift", facts, verdict, sections)
