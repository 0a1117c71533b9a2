"""A CSV or Parquet file becomes a manifest, or is refused with the reason."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from thawline.data.decoding import hash_files
from thawline.data.sources import find_images
from thawline.data.splitting import check_splits, split_dataset
from thawline.errors import DataError
from thawline.options import SplitFractions
from thawline.thaw.image_set import image_set


@pytest.fixture
def table(photos: Path, tmp_path: Path) -> pd.DataFrame:
    """Return path, label, group, sha256 of copies of photographs beside the table to be written."""
    shutil.copytree(photos, tmp_path, dirs_exist_ok=True)
    paths = [f"{path.parent.name}/{path.name}" for path in sorted(photos.glob("*/*.jpg"))]
    rows = pd.DataFrame({"path": paths})
    rows["label"] = rows["path"].str.partition("/")[0]
    rows["group"] = rows["label"] + rows["path"].str.slice(-5, -4)
    rows["sha256"] = hash_files([str(tmp_path / path) for path in paths])
    return rows.sample(frac=1, random_state=0)


def read(file: Path, allow_external_paths: bool = False) -> pd.DataFrame:
    return find_images(str(file), Path(), Path(), allow_external_paths)


def test_parquet_says_the_same_as_a_csv(table: pd.DataFrame, tmp_path: Path) -> None:
    table.to_csv(tmp_path / "list.csv", index=False)
    table.to_parquet(tmp_path / "list.parquet", index=False)
    from_csv, from_parquet = (read(tmp_path / f"list.{kind}") for kind in ("csv", "parquet"))
    assert from_csv["path"].is_monotonic_increasing
    assert list(from_csv) == ["path", "label", "group"]
    assert list(from_parquet) == [*from_csv, "sha256"]
    pd.testing.assert_frame_equal(from_parquet.drop(columns="sha256"), from_csv)
    one, other = (split_dataset(rows, SplitFractions(), 0) for rows in (from_csv, from_parquet))
    pd.testing.assert_frame_equal(other.drop(columns="sha256"), one)


@pytest.mark.parametrize("kind", ["digits", "bytes", "large bytes"])
def test_hashes_in_a_table_are_trusted(table: pd.DataFrame, tmp_path: Path, kind: str) -> None:
    right = dict(zip(table["path"], table["sha256"], strict=True))
    if kind != "digits":
        table = table.assign(sha256=[bytes.fromhex(digits) for digits in table["sha256"]])
    written = pa.Table.from_pandas(table, preserve_index=False)
    if kind == "large bytes":  # as polars writes them
        column = written["sha256"].cast(pa.large_binary())
        written = written.set_column(written.column_names.index("sha256"), "sha256", column)
    pq.write_table(written, tmp_path / "list.parquet")
    splits = split_dataset(read(tmp_path / "list.parquet"), SplitFractions(), 0)
    splits.to_parquet(tmp_path / "splits.parquet", index=False)  # as a catalog may have it
    again = pd.read_parquet(tmp_path / "splits.parquet")
    assert again.dtypes.astype(str).equals(splits.dtypes.astype(str))
    assert check_splits(again)["sha256"].tolist() == splits["sha256"].tolist()
    for path in table["path"]:
        (tmp_path / path).write_bytes(b"changed, and nobody looks")
    train = image_set(splits, "train", torch.device("cpu"))
    rows = splits[splits["split"] == "train"]
    (images,) = train.take([np.arange(len(rows))], view=3)
    assert [image.path for image in images] == rows["path"].tolist()
    assert train.labels.tolist() == rows["class_index"].tolist()
    for image in images:
        assert image.sha256 == right[Path(image.path).relative_to(tmp_path).as_posix()]
        assert image.view == 3


def test_files_are_hashed_where_the_table_brings_no_hashes(splits: pd.DataFrame) -> None:
    val = image_set(splits, "val", torch.device("cpu"))
    (images,) = val.take([[0, 2]])
    assert len(val.labels) == (splits["split"] == "val").sum()
    for image in images:
        assert image.sha256 == hashlib.sha256(Path(image.path).read_bytes()).hexdigest()


def test_links_are_followed_wherever_they_are_in_a_path(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "0.jpg").write_bytes((photos / "flower" / "00.jpg").read_bytes())
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "1.jpg").symlink_to("real/0.jpg")
    (tmp_path / "outside").symlink_to(photos)
    file = tmp_path / "list.parquet"
    real = (tmp_path / "real" / "0.jpg").as_posix()
    for name in ("linked/0.jpg", "1.jpg", "./real/0.jpg", "real/../linked//0.jpg", real):
        pd.DataFrame({"path": [name], "label": ["a"]}).to_parquet(file)
        assert read(file)["path"].tolist() == [real]
    paths = ["1.jpg", "outside/flower/00.jpg"]
    pd.DataFrame({"path": paths, "label": ["a", "b"]}).to_parquet(file)
    assert (photos / "flower" / "00.jpg").as_posix() in read(file, True)["path"].tolist()
    with pytest.raises(DataError, match=r"row 2: 'outside/flower/00.jpg' is outside of"):
        read(file)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"path": ["0.jpg"]}, "needs the columns path and label"),
        ({"path": ["0.jpg", None], "label": ["a", "b"]}, "row 2: 'path' is empty"),
        ({"path": ["0.jpg"], "label": [" "]}, "row 1: 'label' is empty"),
        ({"path": ["0.jpg"], "label": ["a"], "split": ["valid"]}, "the split 'valid'"),
        ({"path": ["0.jpg"], "label": [["a"]]}, "cannot be read as Parquet"),
        ({"path": ["0.jpg", "1.jpg"], "label": ["a", "b"]}, r"1 file\(s\) .* first '1.jpg'"),
        ({"path": ["0.jpg", "./0.jpg"], "label": ["a", "b"]}, "more than once"),
        ({"path": ["0.jpg"], "label": ["a"], "sha256": ["12"]}, "64 hexadecimal digits"),
        ({"path": ["0.jpg"], "label": ["a"], "sha256": ["z" * 64]}, "64 hexadecimal digits"),
        ({"path": ["0.jpg"], "label": ["a"], "sha256": [None]}, "64 hexadecimal digits"),
    ],
)
def test_an_invalid_parquet_file_is_refused_with_the_reason(
    tmp_path: Path, columns: dict[str, list], said: str
) -> None:
    (tmp_path / "0.jpg").touch()
    pd.DataFrame(columns).to_parquet(tmp_path / "list.parquet")
    with pytest.raises(DataError, match=f"dataset.root: .*{said}"):
        read(tmp_path / "list.parquet")


def test_a_parquet_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(tmp_path / "list.parquet")
