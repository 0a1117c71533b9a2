"""Tables that name image files, by paths relative to the folder of the images."""

import os
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from kedro_datasets._typing import TablePreview
from kedro_datasets.pandas import CSVDataset, ParquetDataset

from thawline.data.manifests import ROOT
from thawline.data.shards import is_file
from thawline.data.splitting import SPLITS

PATHS = ("path", "other_path")
# Columns that are text even if all of it looks like numbers: labels may be 007 or NA, files 12e3.
TEXT = (*PATHS, "label", "other_label", "suggested", "prediction", "group", "sha256", "nearest")
SENTENCES = "detail"  # a column of text in which paths may occur
SUFFIX = ".root"  # of the file beside the table that says which folder that is


class ImageTable:
    """Saves paths relative to the folder that `data.attrs` names, and loads them absolute.

    So a table, and MLflow's digest of it, stay the same when images or project move. The folder is
    recorded once, in a text file beside the table, relative to the project if it is given so or
    lies within. If it is no longer there, and the images are in the session's `dataset.root`, that
    takes its place.
    """

    # What the session's `dataset.root` means; set by `hooks.ParametersHook`.
    current_root: ClassVar[Path | None] = None

    def __init__(self, *, path: str, **arguments: Any) -> None:
        """Take the base of a relative root, which Kedro makes absolute, and pandas' arguments."""
        super().__init__(**arguments)
        self._base = Path(path)
        self._last: tuple[Any, pd.DataFrame] | None = None

    def load(self) -> pd.DataFrame:
        """Return the table with absolute paths; a run reads it from disk once."""
        path = self._get_load_path()  # type: ignore[attr-defined]
        if self._last is None or self._last[0] != path:
            self._last = (path, self._read())
        return self._last[1].copy(deep=False)

    def _read(self) -> pd.DataFrame:
        table: pd.DataFrame = super().load()  # type: ignore[misc]
        record = Path(f"{self._get_load_path()}{SUFFIX}")  # type: ignore[attr-defined]
        if not record.is_file():  # of an earlier version, with absolute paths
            return table
        table.attrs[ROOT] = record.read_text(encoding="utf-8")
        root, current = self._root(table), self.current_root
        if not root.is_dir() and current and len(table) and is_file(current / table["path"][0]):
            root, table.attrs[ROOT] = current, current.as_posix()
        for name in {*PATHS}.intersection(table):
            table[name] = _absolute(table[name], root)
        return table

    def save(self, data: pd.DataFrame) -> None:
        """Write the table with relative paths, and the folder beside it."""
        if ROOT in data.attrs:
            record = Path(f"{self._get_save_path()}{SUFFIX}")  # type: ignore[attr-defined]
            record.parent.mkdir(parents=True, exist_ok=True)
            record.write_text(data.attrs[ROOT], encoding="utf-8")
        super().save(self.as_saved(data))  # type: ignore[misc]
        self._last = None

    def _release(self) -> None:
        self._last = None
        super()._release()  # type: ignore[misc]

    def as_saved(self, data: pd.DataFrame) -> pd.DataFrame:
        """Return the table with relative paths."""
        if ROOT not in data.attrs:
            return data
        root = self._root(data)
        columns = {name: _relative(data[name], root) for name in {*PATHS}.intersection(data)}
        if SENTENCES in data:
            text = data[SENTENCES].astype("str")
            columns[SENTENCES] = text.str.replace(f"{root.as_posix()}/", "", regex=False)
        return data.assign(**columns)

    def _root(self, data: pd.DataFrame) -> Path:
        return (self._base / data.attrs[ROOT]).resolve()


class ImageTableDataset(ImageTable, CSVDataset):
    """A CSV whose column path, and perhaps other_path, names image files."""

    def __init__(self, *, load_args: dict[str, Any] | None = None, **arguments: Any) -> None:
        """Read labels and names as text, empty ones too, unless `load_args` says otherwise."""
        text = {"dtype": dict.fromkeys(TEXT, "str"), "keep_default_na": False}
        super().__init__(load_args=text | (load_args or {}), **arguments)


class SplitsDataset(ImageTableDataset):
    """The images that were chosen, their classes and splits."""

    def preview(self) -> TablePreview:
        """Return how many images of each class are in each split, for kedro viz."""
        table = self.load()
        counts = pd.crosstab(table["label"], table["split"]).reindex(columns=SPLITS, fill_value=0)
        rows = counts.reset_index().to_dict(orient="split")
        return TablePreview(rows)


class ImageParquetDataset(ImageTable, ParquetDataset):
    """The same as Parquet, for tables of millions of images."""


def _relative(paths: pd.Series, root: Path) -> pd.Series:
    prefix = f"{root.as_posix().rstrip('/')}/"
    found = paths.str.removeprefix(prefix)
    outside = ~paths.str.startswith(prefix)
    found[outside] = paths[outside].map(lambda path: os.path.relpath(path, root))
    return found


def _absolute(paths: pd.Series, root: Path) -> pd.Series:
    prefix = f"{root.as_posix().rstrip('/')}/"
    leads_out = paths.str.startswith("..")
    found = prefix + paths.astype("str")
    found[leads_out] = found[leads_out].map(os.path.normpath)
    return found
