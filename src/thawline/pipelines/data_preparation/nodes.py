"""Nodes of data preparation."""

import logging
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from thawline.data import corrections, sources, splitting
from thawline.errors import DataError
from thawline.options import DatasetOptions, ModelOptions, ScreeningOptions

logger = logging.getLogger(__name__)


def scan_images(
    project: Path, raw_images: Path, dataset: DatasetOptions
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the manifest of the images at `dataset.root`, corrected, and what was corrected.

    Paths in parameters may be relative to `project`.
    """
    manifest = sources.find_images(dataset.root, project, raw_images, dataset.allow_external_paths)
    logger.info("%d images of %d classes", len(manifest), manifest["label"].nunique())
    if dataset.corrections is None:
        return manifest, pd.DataFrame(columns=corrections.OUTCOMES)
    table = corrections.read_corrections(project / Path(dataset.corrections).expanduser())
    folder = sources.find_root(dataset.root, project, raw_images)
    manifest, table = corrections.apply_corrections(manifest, table, folder)
    for outcome, count in table["outcome"].value_counts().items():
        applied = outcome == corrections.APPLIED
        level = logging.INFO if applied else logging.WARNING
        logger.log(level, "Corrections: %d %s", count, outcome if applied else f"not: {outcome}")
    return manifest, table


def split_dataset(
    clean_manifest: pd.DataFrame,
    dataset: DatasetOptions,
    options: ScreeningOptions,
    model: ModelOptions,
    seed: int,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of splits, and the images that are in two of them."""
    from thawline.data.near_duplicates import leakage, search

    pairs = pd.DataFrame(columns=search.PAIR)
    if options.near_duplicates != "off":
        pairs = search.find_pairs(clean_manifest)
    if options.near_duplicates == "report":
        pairs["kind"] = pairs["kind"].replace("near", "similar")
    grouped = leakage.group_alike(clean_manifest, pairs)
    kinds = pairs["kind"].value_counts()
    if len(pairs):
        logger.info(
            "Near-duplicates: %d pairs stay in one split, %d are only reported",
            kinds.get("near", 0),
            len(pairs) - kinds.get("near", 0),
        )
    seed = seed if dataset.seed is None else dataset.seed
    splits = splitting.split_dataset(grouped, dataset.fractions, seed)
    splits = _spare_seen(splits, model, options)
    counts = splits["split"].value_counts()
    logger.info("Images: %s", ", ".join(f"{name} {counts[name]}" for name in splitting.SPLITS))
    in_two_splits = leakage.find_cross_split_duplicates(splits, pairs)
    leakage.check_leakage(in_two_splits, options)
    if options.near_duplicates == "group" and "group" not in clean_manifest:
        _tell_similar(in_two_splits)
    splits.attrs = in_two_splits.attrs = clean_manifest.attrs
    return splits.drop(columns="sha256"), in_two_splits  # training hashes what is there by then


def _tell_similar(in_two_splits: pd.DataFrame) -> None:
    """Warn about images that look like one of their class in another split."""
    same_class = in_two_splits["label"] == in_two_splits["other_label"]
    rows = in_two_splits[same_class & (in_two_splits["kind"] == "similar")]
    if len(rows):
        logger.warning(
            "%d images of val and test look like one of their class in another split, as those of"
            " a fixed camera do; first %s like %s. If these are versions of one photograph, give"
            " them one group in a CSV.",
            len(rows),
            *rows[["path", "other_path"]].iloc[0],
        )


def _spare_seen(
    splits: pd.DataFrame, model: ModelOptions, options: ScreeningOptions
) -> pd.DataFrame:
    """Return splits whose test images the classifier in `model.weights` has never seen.

    Raises:
        DataError: when there are some and the options say so, or no others of a class are left.
    """
    from thawline.networks.files import read_ancestors

    ancestors = read_ancestors(model)
    if ancestors is None:
        logger.warning(
            "model.weights: %s belongs to a Thawline classifier, and no seen_images.txt beside it"
            " lists its training images. The test split may contain some of them.",
            model.weights,
        )
        return splits
    in_test = splits["split"] == "test"
    found = int(splits["sha256"][in_test].isin(ancestors).sum())
    if found and options.seen_test_images == "error":
        raise DataError(
            f"model.weights: the classifier was trained or validated on {found} of {in_test.sum()}"
            " test images, so that figures on them would flatter. Set dataset.seed and"
            " dataset.fractions to those of its run, or screening.seen_test_images=move."
        )
    splits, moved = splitting.move_seen(splits, ancestors)
    if moved:
        logger.warning(
            "model.weights: the classifier has seen %d of %d test images; they and their copies,"
            " %d images, become training images",
            found,
            in_test.sum(),
            moved,
        )
    return splits


def plot_dataset(splits: pd.DataFrame, seed: int) -> tuple[go.Figure, go.Figure, Image.Image]:
    """Return the class balance, the sizes of the images, and samples of each split."""
    from thawline.reports.figures import data as figures

    balance, sizes = figures.class_balance(splits), figures.image_sizes(splits)
    return balance, sizes, figures.sample_images(splits, seed)
