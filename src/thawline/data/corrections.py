"""Apply what a person has found wrong with the images: other labels, and images to leave out.

Image files are never touched.
"""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from thawline.data.decoding import hash_file, map_threads
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
    if not file.is_file():
        raise DataError(f"dataset.corrections: {file} does not exist.")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, skip_blank_lines=False)
    except (ValueError, OSError, csv.Error) as error:
        raise DataError(
            f"dataset.corrections: {file} cannot be read ({error}). Give a CSV in UTF-8 with the"
            f" columns {', '.join(COLUMNS)}, of which sha256 and label may be absent or empty."
        ) from error
    if not isinstance(table.index, pd.RangeIndex):  # pandas made an index of the surplus values
        raise DataError(
            f"dataset.corrections: the rows of {file} have more values than there are columns. Put"
            " quotes around texts with a comma."
        )
    if missing := {"path", "action"} - set(table):
        raise DataError(
            f"dataset.corrections: {file} has no column {min(missing)}, only"
            f" {', '.join(map(str, table))}. Separate columns by commas."
        )
    table = table.fillna("")
    table = table[(table != "").any(axis=1)]
    if len(unknown := table[~table["action"].isin(ACTIONS)]):
        raise DataError(
            f"dataset.corrections: line {unknown.index[0] + 2} of {file} has the action"
            f" '{unknown['action'].iloc[0]}' (possible: {', '.join(ACTIONS)})."
        )
    table = table.reset_index(drop=True)
    return table.reindex(columns=[*COLUMNS, *table.columns.difference(COLUMNS)], fill_value="")


def apply_corrections(
    manifest: pd.DataFrame, corrections: pd.DataFrame, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the manifest with corrections, and what came of each.

    A correction is of the image at its path, relative to the `folder` of the images; or, if none is
    there, of the image with its sha256. If it has a sha256 and the image's is another, the image
    has been replaced since, and the correction is not applied; if copies have the same, it is of
    all. `add` appends an image with its label, for training if the data brings splits. The last
    line of an image counts.

    Returns:
        the manifest, with fewer rows if images are dropped; and the corrections, one for each copy,
        with their `path` absolute, `old_label` and `outcome`: "applied" or why not.
    """
    table = corrections.assign(sha256=corrections["sha256"].str.lower())
    labels = manifest.set_index("path")["label"]
    table["path"] = [_find(folder, path, labels.index) for path in table["path"]]
    hashes = _hash(labels.index) if (table["sha256"] != "").any() else labels.iloc[:0]
    is_unknown = ~table["path"].isin(labels.index)
    is_new = is_unknown & (table["action"] == "add") & table["path"].map(is_file)
    moved = is_unknown & ~is_new & (table["sha256"] != "")
    at = dict(zip(hashes, hashes.index, strict=True))
    lost = zip(table.loc[moved, "sha256"], table.loc[moved, "path"], strict=True)
    table.loc[moved, "path"] = [at.get(sha256, path) for sha256, path in lost]
    new_paths = table.loc[is_new, "path"].unique()
    new_hashes = _hash(new_paths)
    table = _with_copies(table, hashes)
    is_there = table["path"].isin([*labels.index, *new_paths])
    table["old_label"] = table["path"].map(labels).fillna("")
    table["outcome"] = APPLIED
    other = table["sha256"] != table["path"].map(pd.concat([hashes, new_hashes]))
    table.loc[other & (table["sha256"] != ""), "outcome"] = "the image has been replaced since"
    wrong = table["action"].isin(LABELING) & ~table["label"].isin(labels.unique())
    table.loc[wrong, "outcome"] = "there is no such class"
    table.loc[~is_there, "outcome"] = "there is no such image"
    table.loc[table.duplicated("path", keep="last"), "outcome"] = "a later line is of this image"
    applied = table[table["outcome"] == APPLIED].set_index("path")
    new = applied.loc[applied["action"].isin(LABELING), "label"]
    corrected = manifest.copy()
    corrected.loc[corrected["path"].isin(new.index), "label"] = corrected["path"].map(new)
    dropped = applied.index[applied["action"] == "drop"]
    corrected = corrected[~corrected["path"].isin(dropped)]
    added = new.index.difference(labels.index)
    if len(added):
        rows = {"path": added, "label": new[added].to_numpy(), "split": "train", "group": added}
        rows |= {"sha256": new_hashes.reindex(added, fill_value="")}
        corrected = pd.concat([corrected, pd.DataFrame(rows)[[*manifest]]])
    corrected = corrected.sort_values("path", ignore_index=True)
    corrected.attrs = table.attrs = manifest.attrs
    return corrected, table


def _with_copies(table: pd.DataFrame, hashes: pd.Series) -> pd.DataFrame:
    """Return corrections with one more line for each copy of an image that a sha256 names."""
    copies = hashes.groupby(hashes).groups
    rows = zip(table["path"], table["sha256"], table["path"].map(hashes), strict=True)
    paths = [[*copies[sha].drop(path), path] if sha == own else [path] for path, sha, own in rows]
    lines = table.assign(path=pd.Series(paths, table.index)).explode("path", ignore_index=True)
    return lines.astype({"path": "str"})


def _find(folder: Path, path: str, known: pd.Index) -> str:
    """Return the absolute path of an image; folders of images may be links."""
    plain = os.path.normpath(folder / path)
    return plain if plain in known else str(Path(plain).resolve())


def _hash(paths: Iterable[str]) -> pd.Series:
    """Return the SHA-256 of those files that can be read, by path; screening names the others."""
    there = [path for path in paths if is_file(path)]
    hashes = pd.Series([*map_threads(_try_to_hash, there, "Hashing images")], there, dtype="str")
    return hashes[hashes != ""]


def _try_to_hash(path: str) -> str:
    try:
        return hash_file(path)
    except DataError:
        return ""


def corrected_paths(table: pd.DataFrame) -> frozenset[str]:
    """Return the images that the corrections of `apply_corrections` gave a label."""
    applied = table[table["outcome"] == APPLIED]
    return frozenset(applied.loc[applied["action"].isin(LABELING), "path"])


def summarize_corrections(table: pd.DataFrame) -> str:
    """Return how many corrections were applied, by kind; nothing if there are none."""
    counts = table.loc[table["outcome"] == APPLIED, "action"].value_counts()
    return ", ".join(f"{counts[name]} {said}" for name, said in SAID.items() if name in counts)
