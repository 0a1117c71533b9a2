"""Tables of images stay the same wherever images and project lie."""

from pathlib import Path

import pandas as pd
import pytest
from mlflow.data.pandas_dataset import from_pandas

from thawline.data.sources import find_images
from thawline.datasets import ImageParquetDataset, ImageTableDataset
from thawline.datasets.image_table_dataset import ImageTable

TABLE = {"csv": ImageTableDataset, "parquet": ImageParquetDataset}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Return a project with images beside it."""
    for name in ("ants/1.png", "ants/2.png", "bees/1.png"):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    (tmp_path / "project").mkdir()
    return tmp_path


def dataset(project: Path, kind: str = "csv") -> ImageTable:
    return TABLE[kind](filepath=str(project / f"splits.{kind}"), path=str(project))


@pytest.mark.parametrize("names", [("0001", "0002"), ("12e3", "1e4"), ("True", "False"), ("NA",)])
def test_names_that_look_like_numbers_stay_as_they_are(place: Path, names: tuple[str, ...]) -> None:
    table = pd.DataFrame({"path": [f"{place}/photos/{name}" for name in names], "label": names})
    table["other_path"] = table["path"]
    table.attrs["root"] = "../photos"
    dataset(place / "project").save(table)
    pd.testing.assert_frame_equal(dataset(place / "project").load(), table)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("root", ["../photos", "ABSOLUTE"])
def test_a_table_has_relative_paths_and_loads_absolute_ones(
    place: Path, kind: str, root: str
) -> None:
    project = place / "project"
    given = str(place / "photos") if root == "ABSOLUTE" else root
    manifest = find_images(given, project, project)
    dataset(project, kind).save(manifest)
    reader = pd.read_csv if kind == "csv" else pd.read_parquet
    saved = reader(project / f"splits.{kind}")
    assert saved["path"].tolist() == ["ants/1.png", "ants/2.png", "bees/1.png"]
    assert (project / f"splits.{kind}.root").read_text() == given
    pd.testing.assert_frame_equal(dataset(project, kind).load(), manifest)


def test_images_and_project_may_move_together_and_images_alone_with_a_new_root(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = place / "project"
    for root in ("../photos", str(place / "photos")):
        dataset(project).save(find_images(root, project, project))
        moved = place.with_name("moved")
        place.rename(moved)
        if root == "../photos":
            assert all(Path(path).is_file() for path in dataset(moved / "project").load()["path"])
        monkeypatch.setattr(ImageTable, "current_root", moved / "photos")
        assert dataset(moved / "project").load()["path"][0] == f"{moved}/photos/ants/1.png"
        monkeypatch.setattr(ImageTable, "current_root", moved)  # that of other data
        assert Path(dataset(moved / "project").load()["path"][0]).is_file() == (root[0] == ".")
        moved.rename(place)


def test_files_outside_of_the_folder_and_paths_in_sentences_are_relative_too(place: Path) -> None:
    project, root = place / "project", place / "photos" / "ants"
    table = pd.DataFrame({"path": [f"{root}/1.png", f"{place}/photos/bees/1.png"]})
    table["detail"] = [f"the same bytes as {root}/2.png", "empty"]
    table.attrs["root"] = "../photos/ants"
    dataset(project).save(table)
    saved = pd.read_csv(project / "splits.csv")
    assert saved["path"].tolist() == ["1.png", "../bees/1.png"]
    assert saved["detail"].tolist() == ["the same bytes as 2.png", "empty"]
    assert dataset(project).load()["path"].tolist() == table["path"].tolist()


def test_a_table_of_an_earlier_version_keeps_its_absolute_paths(place: Path) -> None:
    paths = pd.DataFrame({"path": [f"{place}/photos/ants/1.png"], "label": ["ants"]})
    paths.to_csv(place / "project" / "splits.csv", index=False)
    assert dataset(place / "project").load()["path"].tolist() == paths["path"].tolist()


def test_the_same_images_have_the_same_digest_in_mlflow_wherever_they_lie(place: Path) -> None:
    digests, project = [], place / "project"
    for folder in ("here", "there"):
        (place / folder).mkdir()
        (place / "photos").rename(place / folder / "photos")
        manifest = find_images(f"{place}/{folder}/photos", project, project)
        table = dataset(project).as_saved(manifest)
        digests.append(from_pandas(table, name="splits").digest)
        (place / folder / "photos").rename(place / "photos")
    assert digests[0] == digests[1]
