"""Images are found wherever they may lie."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from thawline.data.sources import find_images
from thawline.errors import DataError


def find(root: str, base: Path) -> pd.DataFrame:
    return find_images(root, base=base, packaged_folder=base / "packaged")


def save(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10), (200, 30, 30)).save(folder / name)


def test_a_folder_per_class_is_found_relative_to_the_base(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ("ants/b.JPG", "ants/a.jpeg", "bees/deep/c.png", "ants/._b.jpg", "bees/d.gif")
    save(tmp_path / "photos", *names)
    manifest = find("photos", tmp_path)
    assert list(manifest["label"]) == ["ants", "ants", "bees"]
    assert [Path(p).name for p in manifest["path"]] == ["a.jpeg", "b.JPG", "c.png"]
    assert all(Path(p).is_absolute() for p in manifest["path"])
    (warning,) = caplog.messages
    assert "1 file(s) that are no images" in warning and "d.gif" in warning


def test_split_folders_are_found(tmp_path: Path) -> None:
    classes = ["train/ants", "train/bees", "val/ants", "val/bees"]
    save(tmp_path, *(f"{name}/0.png" for name in classes))
    manifest = find(".", tmp_path)
    assert sorted(set(manifest["split"] + "/" + manifest["label"])) == classes


def test_split_folders_may_have_other_names_and_nothing_beside_them(tmp_path: Path) -> None:
    for split in ("Train", "valid", "Testing"):
        save(tmp_path / split, "ants/0.png", "bees/0.png")
    assert find(".", tmp_path)["split"].tolist() == ["test"] * 2 + ["train"] * 2 + ["val"] * 2
    save(tmp_path, "wasps/0.png")
    with pytest.raises(DataError, match=r"beside .*Train lies .*wasps, which is no split"):
        find(".", tmp_path)


def test_a_class_may_be_named_train(tmp_path: Path) -> None:
    save(tmp_path, "train/0.png", "plane/0.png")
    manifest = find(".", tmp_path)
    assert manifest["label"].tolist() == ["plane", "train"] and "split" not in manifest


def test_a_csv_is_read_with_its_labels_as_text(tmp_path: Path) -> None:
    save(tmp_path / "photos", "1.png", "2.png", "3.png")
    rows = "photos/1.png,007,a,x\nphotos/2.png,NA,a,y\nphotos/3.png,1,b,z"
    (tmp_path / "list.csv").write_text(f"path,label,group,by\n{rows}")
    manifest = find("list.csv", tmp_path)
    assert list(manifest.columns) == ["path", "label", "group"]
    assert list(manifest["label"]) == ["007", "NA", "1"]


def test_digits_are_written_once_as_they_are(tmp_path: Path) -> None:
    manifest = find("sklearn:digits", tmp_path)
    digits = load_digits()
    counts = manifest["label"].value_counts().sort_index()
    assert counts.tolist() == np.bincount(digits.target).tolist()
    for row in manifest.iloc[::300].itertuples():
        idx = int(Path(row.path).stem)
        assert row.label == str(digits.target[idx])
        pixels = np.asarray(Image.open(row.path), dtype=float)
        np.testing.assert_allclose(pixels, digits.images[idx] * 255 / 16, atol=0.5)
    before = Path(manifest["path"][0]).stat().st_mtime_ns
    find("sklearn:digits", tmp_path)
    assert Path(manifest["path"][0]).stat().st_mtime_ns == before


def test_a_torchvision_data_set_becomes_image_files(tmp_path: Path) -> None:
    raw = tmp_path / "packaged" / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 20), ("t10k", 10)):  # MNIST's own file format, already there
        labels = np.arange(count, dtype=np.uint8) % 10
        pixels = np.repeat(labels * 20, 28 * 28).tobytes()
        sizes = b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + sizes + pixels)
        header = b"\0\0\x08\x01" + count.to_bytes(4, "big")
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.tobytes())
    manifest = find("torchvision:MNIST", tmp_path)
    assert manifest["split"].value_counts().to_dict() == {"train": 20, "test": 10}
    three = manifest[manifest["label"].str.startswith("3")]
    assert all(np.unique(np.asarray(Image.open(p))).tolist() == [60] for p in three["path"])


# What the file holds, if it is none of those that the test makes, and what is said of it.
NO_DATA_SETS: dict[str, tuple[bytes | None, str]] = {
    "nowhere": (None, "does not exist"),
    "file.txt": (None, "is not a folder, CSV"),
    "no_folders": (None, "holds no folder"),
    "empty_class": (None, "class folder .*bees holds no image"),
    "uneven": (None, "'wasps' is not in both"),
    "no_label.csv": (b"path\n0.png\n", "needs the columns path and label"),
    "absent.csv": (b"path,label\n0.png,a\ngone.png,b\n",
                   r"1 file\(s\) that .* lists do not exist, first 'gone.png'"),
    "odd_split.csv": (b"path,label,split\n0.png,a,valid\n", "has the split 'valid'"),
    "blank.csv": (b"path,label\n0.png,\n", "line 2: 'label' is empty"),
    "twice.csv": (b"path,label\n0.png,a\n0.png,b\n", "more than once"),
    "same_file.csv": (b"path,label\n0.png,a\n./0.png,b\n", "more than once"),
    "above.csv": (b"path,label\n0.png,a\n../0.png,b\n",
                  r"above.csv, line 3: '../0.png' is outside of .*dataset.allow_external_paths"),
    "absolute.csv": (b"path,label\n/etc/passwd,a\n", r"line 2: '/etc/passwd' is outside of"),
    "linked.csv": (b"path,label\nleads_out.png,a\n", r"line 2: 'leads_out.png' is outside of"),
    "circle.csv": (b"path,label\ncircle.png,a\n",
                   "do not exist, first 'circle.png'|line 2: 'circle.png' is no path"),
    "nul.csv": (b"path,label\na\0.png,a\n",
                "line 2: 'a.x00.png' is no path of a file|do not exist"),
    "long.csv": (b"path,label\n%s.png,a\n" % (b"a" * 5000), "do not exist"),
    "latin.csv": (b"path,label\nb\xe4r.png,a\n", "cannot be read as a CSV in UTF-8"),
    "no_bytes.csv": (b"", "cannot be read as a CSV in UTF-8"),
    "commas.csv": (b"path,label\n0.png,a,b\n", "more values than there are columns"),
    "short.csv": (b"path,label\n0.png\n", "line 2: 'label' is empty"),
    "torchvision:CIFAR11": (None, "torchvision has no data set 'CIFAR11'"),
    "torchvision:EMNIST": (None, "not a data set of images with one label each .*Unknown value"),
    "sklearn:iris": (None, "'sklearn:iris' is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("root", NO_DATA_SETS)
def test_what_is_no_data_set_is_refused_with_its_parameter(tmp_path: Path, root: str) -> None:
    content, said = NO_DATA_SETS[root]
    (tmp_path / "file.txt").write_text("x")
    (tmp_path / "no_folders").mkdir()
    save(tmp_path, "0.png", "empty_class/ants/0.png", "uneven/val/ants/0.png")
    save(tmp_path / "uneven" / "train", "ants/0.png", "wasps/0.png")
    (tmp_path / "empty_class/bees").mkdir()
    (tmp_path / "leads_out.png").symlink_to("/etc/passwd")
    (tmp_path / "circle.png").symlink_to("circle.png")
    if content is not None:
        (tmp_path / root).write_bytes(content)
    with pytest.raises(DataError, match=f"dataset.root: .*({said})"):
        find(root, tmp_path)


def test_a_csv_names_files_elsewhere_where_that_is_allowed(tmp_path: Path) -> None:
    save(tmp_path, "0.png")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "list.csv").write_text("path,label\n../0.png,a\n")
    manifest = find_images("lists/list.csv", tmp_path, tmp_path, allow_external_paths=True)
    assert manifest["path"].tolist() == [(tmp_path / "0.png").as_posix()]
