"""Nodes of data preparation."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from thawline import images, splitting
from thawline.figures import data as figures
from thawline.options import DatasetOptions

logger = logging.getLogger(__name__)


def scan_images(raw_images: Callable[[str], pd.DataFrame], dataset: DatasetOptions) -> pd.DataFrame:
    """Return the manifest of the images at `dataset.root`."""
    manifest = raw_images(dataset.root)
    logger.info("%d images of %d classes", len(manifest), manifest["label"].nunique())
    return manifest


def screen_images(manifest: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the manifest of the readable images, and a table of the others with the reason."""
    clean_manifest, quarantine = images.screen_images(manifest)
    if len(quarantine):
        logger.warning(
            "%d file(s) cannot be read and are left out, first %s (%s); all are in the table"
            " 'quarantine'",
            len(quarantine),
            quarantine["path"].iloc[0],
            quarantine["problem"].iloc[0],
        )
    return clean_manifest, quarantine


def split_dataset(clean_manifest: pd.DataFrame, dataset: DatasetOptions, seed: int) -> pd.DataFrame:
    """Return the table of splits."""
    seed = seed if dataset.seed is None else dataset.seed
    splits = splitting.split_dataset(clean_manifest, dataset.fractions, seed)
    counts = splits["split"].value_counts()
    logger.info("Images: %s", ", ".join(f"{name} {counts[name]}" for name in images.SPLITS))
    return splits


def draw_data(splits: pd.DataFrame, seed: int) -> tuple[go.Figure, go.Figure, Image.Image]:
    """Return the class balance, the sizes of the images, and samples of each split."""
    return (
        figures.class_balance(splits),
        figures.image_sizes(splits),
        figures.sample_images(splits, seed),
    )
