"""Apply what a person has found wrong with the images: other labels, and images to leave out.

Image files are never touched.
"""

import csv
from pathlib import Path

import pandas as pd

from thawline.data.decoding import hash_files
from thawline.data.shards import is_file
from thawline.errors import DataError

# fine: looked at, and left as it is; add: an image file that the data set lacks
ACTIONS = ("relabel", "drop", "fine", "add")
LABELING = ("relabel", "add")  # actions that give a label
SAID = {"relabel": "relabeled", "drop": "left out", "fine": "confirmed", "add": "added"}
COLUMNS = ["path", "sha256", "action", "label"]
OUTCOMES = [*COLUMNS, "old_label", "outcome"]
APPLIED = "applied"


def read_corrections(file: Path) -> pd.DataFrame:
    """Read a CSV with the columns path, action and perhaps sha256, label, and others, as text.

    Raises:
        DataError: if there is no such file, it lacks a column, or a row has an unknown action.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(
            f"dataset.corrections: {file} cannot be read ({error}). Give a CSV in UTF-8 with the"
            f" columns {', '.join(COLUMNS)}, of which sha256 and label may be absent or empty."
        ) from error
    if missing := {"path", "action"} - set(table):
        raise DataError(f"dataset.corrections: {file} has no column {min(missing)}.")
    if len(unknown := table[~table["action"].isin(ACTIONS)]):
        raise DataError(
            f"dataset.corrections: line {unknown.index[0] + 2} of {file} has the action"
            f" '{unknown['action'].iloc[0]}' (possible: {', '.join(ACTIONS)})."
        )
    return table.reindex(columns=[*COLUMNS, *table.columns.difference(COLUMNS)], fill_value="")


def apply_corrections(
    manifest: pd.DataFrame, corrections: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the manifest with corrections, and what came of each.

    A correction is of the image at its path, relative to the `folder` of the images; or, if none is
    there, of the image with its sha256. If it has a sha256 and the image's is another, the image
    has been replaced since, and the correction is not applied. The last one of an image counts.
    `add` appends an image with its label, for training if the data brings splits.

    Returns:
        the manifest, with fewer rows if images are dropped; and the corrections with their `path`
        absolute, `old_label` and `outcome`: "applied" or why not.
    """
    table = corrections.copy()
    table["path"] = [str((folder / path).resolve()) for path in table["path"]]
    labels = manifest.set_index("path")["label"]
    moved = ~table["path"].isin(labels.index) & (table["sha256"] != "")
    if moved.any():
        at = dict(zip(hash_files(manifest["path"].tolist()), manifest["path"], strict=True))
        table.loc[moved, "path"] = table["sha256"].map(at).fillna(table["path"])
    is_new = (table["action"] == "add") & ~table["path"].isin(labels.index)
    is_there = table["path"].isin(labels.index) | (is_new & table["path"].map(is_file))
    table["old_label"] = table["path"].map(labels).fillna("")
    table["outcome"] = APPLIED
    checked = table[is_there & (table["sha256"] != "")]
    other = checked["sha256"].to_numpy() != hash_files(checked["path"].tolist())
    table.loc[checked.index[other], "outcome"] = "the image has been replaced since"
    gives_label = table["action"].isin(LABELING)
    wrong = gives_label & ~table["label"].isin(labels.unique())
    table.loc[wrong, "outcome"] = "there is no such class"
    table.loc[~is_there, "outcome"] = "there is no such image"
    table.loc[table.duplicated("path", keep="last"), "outcome"] = "a later line is of this image"
    applied = table[table["outcome"] == APPLIED].set_index("path")
    new = applied.loc[applied["action"].isin(LABELING), "label"]
    corrected = manifest.copy()
    corrected.loc[corrected["path"].isin(new.index), "label"] = corrected["path"].map(new)
    dropped = applied.index[applied["action"] == "drop"]
    corrected = corrected[~corrected["path"].isin(dropped)]
    added = applied.index[is_new[table["outcome"] == APPLIED]]
    if len(added):
        rows = {"path": added, "label": new[added].to_numpy(), "split": "train", "group": added}
        corrected = pd.concat([corrected, pd.DataFrame(rows)[[*manifest]]])
    corrected = corrected.sort_values("path", ignore_index=True)
    corrected.attrs = table.attrs = manifest.attrs
    return corrected, table


def corrected_paths(table: pd.DataFrame) -> frozenset[str]:
    """Return the images that the corrections of `apply_corrections` gave a label."""
    applied = table[table["outcome"] == APPLIED]
    return frozenset(applied.loc[applied["action"].isin(LABELING), "path"])


def summarize_corrections(table: pd.DataFrame) -> str:
    """Return how many corrections were applied, by kind; nothing if there are none."""
    counts = table.loc[table["outcome"] == APPLIED, "action"].value_counts()
    texts = [f"{counts[name]} {SAID[name]}" for name in ACTIONS if name in counts]
    return ", ".join(texts)
