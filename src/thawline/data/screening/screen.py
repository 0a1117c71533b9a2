"""Screen a manifest: keep the usable images, and list all others with the reason."""

import logging
import unicodedata
from pathlib import Path

import pandas as pd
from PIL import Image

from thawline.data.screening.file_records import Problem, examine_all
from thawline.errors import DataError, first_lines
from thawline.options import BitDepth, ScreeningOptions, TransformOptions

logger = logging.getLogger(__name__)

COLUMNS = ["path", "label", "problem", "detail", "kept"]


def screen_images(
    manifest: pd.DataFrame,
    options: ScreeningOptions,
    transforms: TransformOptions | None = None,
    cache: Path | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split a manifest into usable images and a quarantine.

    Every file is read and decoded once, several at a time. Files in the Parquet file `cache`, which
    is updated, are skipped if their size and time of change are the same. A warning says if
    the bit depth of `transforms` does not fit the files, and others count what is in quarantine.

    Returns:
        The manifest with a column `sha256`. And the quarantine, one row per observation: path,
        label, problem (a value of `Problem`), detail (a sentence) and kept (whether the image is
        used nevertheless).

    Raises:
        DataError: if a class has no readable image; or, if `on_problem` is "error", for any
            problem.
    """
    manifest = manifest.drop(columns="sha256", errors="ignore")  # hashes of the files replace it
    records = examine_all(manifest["path"].tolist(), options, cache)
    table = manifest.join(pd.DataFrame(records, index=manifest.index).drop(columns="path"))
    readable = table["label"][table["problem"] == ""]
    checks = {
        Problem.CONFLICTING_LABELS: _find_conflicting_labels,
        Problem.CLASS_TOO_SMALL: _find_small_classes,
    }
    for problem, find in checks.items():
        details = find(table[table["problem"] == ""], options)
        table.loc[details.index, "problem"] = problem.value
        table.loc[details.index, "detail"] = details
    is_usable = table["problem"] == ""
    usable, excluded = table[is_usable], table[~is_usable]
    _check_bit_depth(usable, transforms.bit_depth if transforms else "auto")
    if options.on_problem == "error" and len(excluded):
        raise DataError(_describe(excluded))
    observed = [excluded.assign(kept=False)]
    notes = {
        Problem.WRONG_EXTENSION: _note_wrong_extensions(usable),
        Problem.DUPLICATE: "the same bytes as " + _first_other(usable["path"], usable["sha256"]),
        Problem.CASE_CLASH: _note_case_clashes(usable),
    }
    for problem, details in notes.items():
        rows = usable.loc[details.index]
        observed.append(rows.assign(problem=problem.value, detail=details, kept=True))
    quarantine = pd.concat(observed, ignore_index=True)[COLUMNS]
    if emptied := {*table["label"]} - {*readable}:
        first = excluded[excluded["label"] == min(emptied)].iloc[0]
        raise DataError(
            f"dataset.root: class '{first['label']}' has no readable image ({first['path']}:"
            f" {first['detail']}). Fix its images or remove the class."
        )
    for kept, fate in ((False, "left out"), (True, "kept all the same")):
        rows = quarantine[quarantine["kept"] == kept]
        if len(rows):
            counts = rows["problem"].value_counts().items()
            problems = ", ".join(f"{count} {problem}" for problem, count in counts)
            logger.warning(
                "%d file(s) are %s (%s), first %s: %s; all are in the table 'quarantine'",
                *(rows["path"].nunique(), fate, problems, *rows[["path", "detail"]].iloc[0]),
            )
    clean = usable[[*manifest.columns, "sha256"]].reset_index(drop=True)
    clean.attrs = quarantine.attrs = manifest.attrs
    return clean, quarantine


def _find_conflicting_labels(images: pd.DataFrame, options: ScreeningOptions) -> pd.Series:
    """Describe images that are in several classes with the same bytes."""
    labels = images.groupby("sha256")["label"]
    rows = images[labels.transform("nunique") > 1]
    if options.conflicting_labels == "keep":
        rows = rows.head(0)
    classes = rows.groupby("sha256")["label"].transform(lambda names: ", ".join(sorted({*names})))
    keep = "; screening.conflicting_labels=keep keeps them"
    return "copies are in the classes " + classes.astype("str") + keep


def _find_small_classes(images: pd.DataFrame, options: ScreeningOptions) -> pd.Series:
    """Describe images of classes with too few images."""
    counts = images.groupby("label")["path"].transform("count")
    detail = f"its class has fewer than {options.min_images} images (screening.min_images)"
    return pd.Series(detail, index=images.index[counts < options.min_images], dtype="str")


def _note_wrong_extensions(images: pd.DataFrame) -> pd.Series:
    """Describe images whose format is not that of their file name."""
    formats = Image.registered_extensions()
    named = images["path"].map(lambda path: formats.get(Path(path).suffix.lower(), ""))
    same = named.replace("MPO", "JPEG") == images["format"].replace("MPO", "JPEG")
    return "its content is " + images["format"][~same].astype("str")


def _note_case_clashes(images: pd.DataFrame) -> pd.Series:
    """Describe images whose paths differ in case, or in the form of their Unicode, alone."""
    folded = images["path"].map(lambda path: unicodedata.normalize("NFC", path).casefold())
    return "on Windows and macOS the same file as " + _first_other(images["path"], folded)


def _first_other(paths: pd.Series, key: pd.Series) -> pd.Series:
    """Return for each path whose key occurs more than once the first other path with that key."""
    paths = paths[key.duplicated(keep=False)]
    groups = paths.groupby(key[paths.index])
    others = groups.transform("first").where(groups.cumcount() > 0, groups.shift(-1))
    return others.astype("str")


def _check_bit_depth(images: pd.DataFrame, bit_depth: BitDepth) -> None:
    """Warn if grayscale images with more than 8 bits per pixel would become too dark or white."""
    text = "transforms.bit_depth: %s makes %d image(s) %s, first %s. Set transforms.bit_depth=%s."
    fractions = images[(images["mode"] == "F") & (images["bits"] == 0)]
    if bit_depth != "auto" and len(fractions):
        effect, first = "black, because their values are from 0 to 1", fractions["path"].iloc[0]
        logger.warning(text, bit_depth, len(fractions), effect, first, "auto")
    deep = images[images["bits"] > 0].sort_values("bits", ascending=False, kind="stable")
    if deep.empty:
        return
    needed, is_float = int(deep["bits"].iloc[0]), deep["mode"].iloc[0] == "F"  # floats above 1
    assumed = bit_depth if bit_depth != "auto" else 0 if is_float else 16
    if needed != assumed:
        effect = "too dark" if needed < assumed else "white where they are bright"
        logger.warning(text, bit_depth, len(deep), effect, deep["path"].iloc[0], needed)


def _describe(quarantine: pd.DataFrame) -> str:
    """Return the message of a run that stops: the number of files per problem, and the first."""
    reasons = ", ".join(f"{n} {name}" for name, n in quarantine["problem"].value_counts().items())
    files = [f"{row.path}: {row.problem}, {row.detail}" for row in quarantine.itertuples()]
    return (
        f"dataset.root: {len(files)} file(s) cannot be used ({reasons}):\n{first_lines(files)}\n"
        "Fix or remove them, or set screening.on_problem to quarantine to continue without."
    )
