"""A run's catalog holds whole files alone, and gives back what the run has saved."""

from pathlib import Path
from typing import Any

import pytest
from kedro.io import DatasetError

from thawline.hooks.catalog import RunCatalog


def catalog(folder: Path, version: str | None) -> RunCatalog:
    file = {"filepath": f"{folder}/entry.json", "versioned": version is not None}
    entry = {"type": "json.JSONDataset", **file}
    return RunCatalog.from_config({"entry": entry}, save_version=version)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("versions", [("1", "2"), (None, None)], ids=["versioned", "plain"])
def test_what_could_not_be_saved_as_a_whole_takes_the_place_of_nothing(
    tmp_path: Path, versions: tuple[str | None, str | None]
) -> None:
    catalog(tmp_path, versions[0]).save("entry", {"n": 1})
    data: dict[str, Any] = {"n": 2, "rest": object()}  # half of it is written before the error
    with pytest.raises(DatasetError, match="not JSON serializable"):
        catalog(tmp_path, versions[1]).save("entry", data)
    assert catalog(tmp_path, versions[0]).load("entry") == {"n": 1}
    assert len(files(tmp_path)) == 1 and not [*tmp_path.glob(".unfinished*")]


def test_a_run_reads_what_it_saved_whatever_another_has_saved_since(tmp_path: Path) -> None:
    own, other = catalog(tmp_path, "1"), catalog(tmp_path, "2")
    own.save("entry", {"n": 1})
    other.save("entry", {"n": 2})
    assert own.load("entry") == {"n": 1} and other.load("entry") == {"n": 2}
    assert catalog(tmp_path, "3").load("entry") == {"n": 2}
    assert own.load("entry", version="2") == {"n": 2}
    names = [path.relative_to(tmp_path).as_posix() for path in sorted(files(tmp_path))]
    assert names == ["entry.json/1/entry.json", "entry.json/2/entry.json"]


def test_a_version_is_never_overwritten(tmp_path: Path) -> None:
    catalog(tmp_path, "1").save("entry", {"n": 1})
    with pytest.raises(DatasetError, match="cannot take version 1"):
        catalog(tmp_path, "1").save("entry", {"n": 2})
    assert catalog(tmp_path, "2").load("entry") == {"n": 1}


def test_a_pinned_entry_is_one_dataset_that_may_keep_what_it_read(tmp_path: Path) -> None:
    for version in ("1", "2"):
        catalog(tmp_path, version).save("entry", {"n": int(version)})
    entries = catalog(tmp_path, "3")
    entries.pin("entry", "1")
    assert entries.load("entry") == {"n": 1} and entries["entry"] is entries["entry"]
    entries.save("entry", {"n": 3})
    assert entries.load("entry") == {"n": 3}
