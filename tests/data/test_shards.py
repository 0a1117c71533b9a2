"""Images in tar archives are read where they lie, as if they were files."""

import io
import json
import os
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.training import run, same
from thawline.data.decoding import ImageError, hash_files, image_size, read_image
from thawline.data.near_duplicates.search import find_pairs
from thawline.data.screening.file_records import read_records
from thawline.data.screening.screen import screen_images
from thawline.data.shards import read_bytes
from thawline.data.sources import find_images, name_files
from thawline.data.splitting import split_dataset
from thawline.errors import DataError
from thawline.options import Phase, ScreeningOptions, SplitFractions


def write_shard(file: Path, members: Iterable[tuple[str, bytes]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as shard:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            shard.addfile(member, io.BytesIO(content))
    return file


def samples(files: Iterable[Path]) -> list[tuple[str, bytes]]:
    """Return an image and its label for each file, the label as text or in JSON by turns."""
    members = []
    for idx, path in enumerate(files):
        key, label = f"{path.parent.name}/{path.stem}", path.parent.name
        text = ("cls", label) if idx % 2 else ("json", json.dumps({"label": label, "by": "me"}))
        members += [(f"{key}.{text[0]}", text[1].encode()), (f"{key}.jpg", path.read_bytes())]
    return members


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of three shards with all the photographs."""
    folder = tmp_path_factory.mktemp("shards")
    files = sorted(photos.glob("*/*.jpg"))
    for number, start in enumerate((0, 15, 30)):
        write_shard(folder / f"{number:03d}.tar", samples(files[start : start + 15]))
    return folder


def scan(folder: Path) -> pd.DataFrame:
    return find_images(str(folder), Path(), Path())


def test_shards_train_the_same_weights_as_the_folder_they_were_made_of(
    photos: Path, shards: Path, tmp_path: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards.iterdir()}
    weights, tables = [], []
    for folder in (photos, shards):
        cache = tmp_path / f"{folder.name}.parquet"
        clean, quarantine = screen_images(scan(folder), ScreeningOptions(), cache=cache)
        assert quarantine.empty and find_pairs(clean).empty
        splits = split_dataset(clean, SplitFractions(), seed=3)
        tables.append(splits[["sha256", "label", "class_index", "split"]].astype("str"))
        phase = Phase(trainable="all", epochs=1, lr=0.003)
        weights.append(run(splits.drop(columns="sha256"), phase).last)
    pd.testing.assert_frame_equal(*tables)
    assert same(*weights)
    assert {path: path.stat().st_mtime_ns for path in shards.iterdir()} == before


def test_a_member_is_read_like_a_file(photos: Path, shards: Path) -> None:
    file, member = photos / "temple" / "03.jpg", f"{shards}/001.tar/temple/03.jpg"
    assert read_bytes(member) == file.read_bytes()
    assert hash_files([member]) == hash_files([str(file)])
    assert image_size(member) == image_size(file) == (120, 100)
    assert read_image(Path(member), 0.1).tobytes() == read_image(file, 0.1).tobytes()
    assert name_files(["001.tar/temple/03.jpg"], base=shards) == [member]
    with pytest.raises(FileNotFoundError):
        read_bytes(f"{shards}/001.tar/temple/33.jpg")
    with pytest.raises(NotADirectoryError):
        read_bytes(f"{file}/03.jpg")


names = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="/\0"), min_size=1)
paths = st.lists(names, min_size=1, max_size=3).map("/".join)


@given(st.dictionaries(paths, st.binary(max_size=2000), max_size=8))
def test_whatever_its_name_a_member_is_found(members: dict[str, bytes]) -> None:
    members = {
        name: content
        for name, content in members.items()
        if not {".", ".."} & set(name.split("/")) and len(name.encode()) < 200
    }
    with tempfile.TemporaryDirectory() as folder:
        shard = write_shard(Path(folder, "any.tar"), members.items())
        for name, content in members.items():
            assert read_bytes(f"{shard}/{name}") == content


def test_shards_may_bring_their_splits(photos: Path, tmp_path: Path) -> None:
    for split, numbers in (("train", range(8)), ("val", range(8, 12))):
        files = [photos / label / f"{n:02d}.jpg" for n in numbers for label in ("temple", "flower")]
        members = [("./README.txt", b"of the shard"), *samples(files)]
        write_shard(tmp_path / split / "a.tar", members)
    manifest = scan(tmp_path)
    assert manifest["split"].value_counts().to_dict() == {"train": 16, "val": 8}
    assert Path(manifest["path"][0]) == tmp_path / "train" / "a.tar" / "flower" / "00.jpg"
    assert manifest["label"].tolist() == [Path(p).parent.name for p in manifest["path"]]


def test_an_archive_beside_folders_of_classes_is_left_alone(photos: Path, tmp_path: Path) -> None:
    for label in ("flower", "temple"):
        (tmp_path / label).symlink_to(photos / label)
    write_shard(tmp_path / "download.tar", [])
    assert len(scan(tmp_path)) == len(scan(photos))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_table_names_members(shards: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "000.tar").write_bytes((shards / "000.tar").read_bytes())
    file = tmp_path / f"list.{kind}"
    rows = pd.DataFrame({"path": ["000.tar/flower/00.jpg"], "label": ["a"]})
    rows.to_csv(file, index=False) if kind == "csv" else rows.to_parquet(file)
    assert scan(file)["path"].tolist() == [f"{tmp_path}/000.tar/flower/00.jpg"]
    rows.assign(path="000.tar/gone.jpg").to_csv(tmp_path / "gone.csv", index=False)
    with pytest.raises(DataError, match=r"do not exist, first '000\.tar/gone.jpg'"):
        scan(tmp_path / "gone.csv")


def test_what_is_wrong_with_one_image_is_for_the_quarantine(photos: Path, tmp_path: Path) -> None:
    whole = (photos / "flower" / "00.jpg").read_bytes()
    cut = whole[: len(whole) // 2]
    members = samples(sorted(photos.glob("*/0[0-4].jpg")))
    for key, content in (("x/cut", cut), ("x/none", b""), ("x/text", b"hello"), ("b\udcff", whole)):
        members += [(f"{key}.jpg", content), (f"{key}.cls", b"flower")]
    shard = write_shard(tmp_path / "s" / "0.tar", members)
    cache = tmp_path / "facts.parquet"
    for _ in range(2):  # the second time all but the broken ones are remembered
        clean, quarantine = screen_images(scan(tmp_path / "s"), ScreeningOptions(), cache=cache)
        assert len(clean) == 10
        found = {Path(row.path).name: row.problem for row in quarantine.itertuples()}
        assert found == {
            "cut.jpg": "truncated",
            "none.jpg": "empty",
            "text.jpg": "not_an_image",
            r"b\udcff.jpg": "unusable_name",
        }
    with pytest.raises(ImageError, match=r"text\.jpg' cannot be read: not an image"):
        read_image(f"{shard}/x/text.jpg")
    known = read_records(cache)
    assert known[f"{shard}/x/cut.jpg"].size == len(cut)
    assert known[f"{shard}/x/cut.jpg"].mtime_ns == shard.stat().st_mtime_ns


JPG, CLS = ("a/1.jpg", b"pixels"), ("a/1.cls", b"ant")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([JPG], "the key 'a/1' has no label, neither"),
        ([CLS], "the key 'a/1' has a label and no image"),
        ([JPG, ("a/1.cls", b" \n")], "the key 'a/1' has no label in a/1.cls"),
        ([JPG, ("a/1.cls", b"\xff")], "the key 'a/1' has no label in a/1.cls"),
        ([JPG, ("a/1.json", b"{}")], "the key 'a/1' has no label in a/1.json"),
        ([JPG, ("a/1.json", b"[1]")], "the key 'a/1' has no label in a/1.json"),
        ([JPG, ("a/1.json", b'{"label": null}')], "the key 'a/1' has no label in a/1.json"),
        ([JPG, ("a/1.json", b'{"label": ["ant"]}')], "the key 'a/1' has no label in a/1.json"),
        ([JPG, ("a/1.json", b"{")], "the key 'a/1' has no label in a/1.json"),
        ([JPG, CLS, JPG], "the key 'a/1' occurs twice, as a/1.jpg"),
        ([JPG, CLS, ("./a/1.jpg", b"")], "the key 'a/1' occurs twice, as a/1.jpg"),
        ([JPG, CLS, ("a/1.JPG", b"")], "the key 'a/1' occurs twice, as a/1.JPG and a/1.jpg"),
        ([JPG, CLS, ("a/1.png", b"")], "the key 'a/1' has two images"),
        ([("a/.hidden.jpg", b""), ("notes.txt", b"")], "hold no image"),
    ],
)
def test_a_sample_that_is_none_is_named_with_its_shard(
    tmp_path: Path, members: list[tuple[str, bytes]], said: str
) -> None:
    write_shard(tmp_path / "7.tar", members)
    with pytest.raises(DataError, match=rf"dataset.root: .*{tmp_path}.*{said}"):
        scan(tmp_path)


@pytest.mark.parametrize("left", [300, 513, 700, 1023, 1024, 1500, 2048])
def test_a_shard_that_is_cut_off_is_refused(tmp_path: Path, left: int) -> None:
    shard = write_shard(tmp_path / "7.tar", [("1.jpg", b"x" * 500), ("1.cls", b"ant")])
    os.truncate(shard, left)
    said = r"7\.tar is (truncated or damaged after|not a tar archive)"
    with pytest.raises(DataError, match=said):
        scan(tmp_path)


def test_a_compressed_shard_is_refused(tmp_path: Path) -> None:
    tarfile.open(tmp_path / "7.tar.gz", "w:gz").close()
    with pytest.raises(DataError, match=r"7\.tar\.gz is compressed"):
        scan(tmp_path)
    (tmp_path / "7.tar.gz").rename(tmp_path / "7.tar")
    with pytest.raises(DataError, match=r"7\.tar is not a tar archive, or is compressed"):
        scan(tmp_path)


def test_a_shard_that_changes_is_looked_into_again(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "7.tar", [("1.jpg", b"one")])
    assert read_bytes(f"{shard}/1.jpg") == b"one"
    write_shard(shard, [("0.jpg", b"another"), ("1.jpg", b"two, and longer")])
    os.utime(shard, ns=(0, 0))
    assert read_bytes(f"{shard}/1.jpg") == b"two, and longer"
    assert read_bytes(f"{shard}/0.jpg") == b"another"
