"""Nodes of data preparation."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from thawline import images, near_duplicates, screening, splitting
from thawline.figures import data as figures
from thawline.options import DatasetOptions, ScreeningOptions, TransformOptions

logger = logging.getLogger(__name__)


def scan_images(raw_images: Callable[..., pd.DataFrame], dataset: DatasetOptions) -> pd.DataFrame:
    """Return the manifest of the images at `dataset.root`."""
    manifest = raw_images(dataset.root, allow_outside=dataset.allow_outside)
    logger.info("%d images of %d classes", len(manifest), manifest["label"].nunique())
    return manifest


def screen_images(
    manifest: pd.DataFrame,
    options: ScreeningOptions,
    transforms: TransformOptions,
    cache: screening.ScreeningCache,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the manifest of the usable images, and a table of what is odd with the reason."""
    clean_manifest, quarantine = screening.screen_images(
        manifest, options, cache, transforms.bit_depth
    )
    for kept, fate in ((False, "left out"), (True, "kept all the same")):
        rows = quarantine[quarantine["kept"] == kept]
        if len(rows):
            counts = rows["problem"].value_counts()
            logger.warning(
                "%d file(s) are %s (%s), first %s: %s; all are in the table 'quarantine'",
                rows["path"].nunique(),
                fate,
                ", ".join(f"{count} {problem}" for problem, count in counts.items()),
                rows["path"].iloc[0],
                rows["detail"].iloc[0],
            )
    return clean_manifest, quarantine


def split_dataset(
    clean_manifest: pd.DataFrame, dataset: DatasetOptions, options: ScreeningOptions, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of splits, and the images that are in two of them."""
    pairs = near_duplicates.find_pairs(clean_manifest)
    grouped = near_duplicates.group_alike(clean_manifest, pairs)
    if near := (pairs["kind"] == "near").sum():
        logger.info("%d pairs of images look the same", near)
    seed = seed if dataset.seed is None else dataset.seed
    splits = splitting.split_dataset(grouped, dataset.fractions, seed)
    counts = splits["split"].value_counts()
    logger.info("Images: %s", ", ".join(f"{name} {counts[name]}" for name in images.SPLITS))
    in_two_splits = near_duplicates.find_in_two_splits(splits, pairs)
    screening.check_leakage(in_two_splits, options)
    return splits.drop(columns="sha256"), in_two_splits  # training hashes what is there by then


def draw_data(splits: pd.DataFrame, seed: int) -> tuple[go.Figure, go.Figure, Image.Image]:
    """Return the class balance, the sizes of the images, and samples of each split."""
    return (
        figures.class_balance(splits),
        figures.image_sizes(splits),
        figures.sample_images(splits, seed),
    )
