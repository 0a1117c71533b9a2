"""Corrections change the table of images, say what they could not change, and touch no file."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conftest import kedro, latest, log, report, run_kedro
from thawline.data.corrections import ACTIONS, apply_corrections, read_corrections
from thawline.data.decoding import hash_files
from thawline.data.sources import find_images
from thawline.errors import DataError


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(photos, tmp_path / "photos"))


def manifest_of(folder: Path) -> pd.DataFrame:
    return find_images(str(folder), folder.parent, folder)


def correct(folder: Path, *lines: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the corrected manifest, and what came of each line."""
    file = folder.parent / "corrections.csv"
    file.write_text("\n".join(["path,action,label,sha256,note", *lines]), encoding="utf-8")
    manifest, table = apply_corrections(manifest_of(folder), read_corrections(file), folder)
    assert set(table["note"]) == {line.split(",")[4] for line in lines}
    return manifest, table["outcome"].tolist()


def test_labels_are_changed_and_images_left_out_and_no_file_is_touched(folder: Path) -> None:
    before = hash_files(manifest_of(folder)["path"].tolist())
    lines = (
        "flower/00.jpg,relabel,temple,,a roof",
        "temple/01.jpg,drop,,,",
        "temple/02.jpg,fine,,,",
    )
    manifest, outcomes = correct(folder, *lines)
    assert outcomes == ["applied"] * 3
    labels = manifest.set_index("path")["label"]
    assert labels[str(folder / "flower/00.jpg")] == "temple"
    assert labels[str(folder / "temple/02.jpg")] == "temple"
    assert str(folder / "temple/01.jpg") not in labels and len(labels) == 39
    assert hash_files(manifest_of(folder)["path"].tolist()) == before


def test_a_labeled_image_from_elsewhere_is_added(folder: Path) -> None:
    new = folder.parent / "new.jpg"
    shutil.copy(folder / "flower/00.jpg", new)
    lines = ("../new.jpg,add,flower,,", "../absent.jpg,add,flower,,", "../new.png,add,bird,,")
    manifest, outcomes = correct(folder, *lines)
    assert outcomes == ["applied", "there is no such image", "there is no such image"]
    assert manifest.set_index("path")["label"][str(new)] == "flower" and len(manifest) == 41


def test_an_image_that_has_moved_is_found_by_its_content(folder: Path) -> None:
    (sha256,) = hash_files([str(folder / "flower/03.jpg")])
    (folder / "flower/03.jpg").rename(folder / "flower/moved.jpg")
    manifest, outcomes = correct(folder, f"flower/03.jpg,relabel,temple,{sha256},")
    assert outcomes == ["applied"]
    assert manifest.set_index("path")["label"][str(folder / "flower/moved.jpg")] == "temple"


def test_a_later_line_changes_the_label_of_an_added_image_or_leaves_it_out(folder: Path) -> None:
    for name in ("new.jpg", "newer.jpg"):
        shutil.copy(folder / "flower/00.jpg", folder.parent / name)
    with (folder.parent / "new.jpg").open("ab") as file:
        file.write(b" ")  # so that its content is its own
    (sha256,) = hash_files([str(folder.parent / "new.jpg")])
    added = ("../new.jpg,add,flower,,", "../newer.jpg,add,flower,,")
    later = (f"../new.jpg,relabel,temple,{sha256},", "../newer.jpg,drop,,,")
    manifest, outcomes = correct(folder, *added, *later)
    assert outcomes == ["a later line is of this image"] * 2 + ["applied"] * 2
    labels = manifest.set_index("path")["label"]
    assert labels[str(folder.parent / "new.jpg")] == "temple" and len(labels) == 41


def test_a_correction_by_content_is_of_all_copies_but_an_added_copy_is_itself(folder: Path) -> None:
    (sha256,) = hash_files([str(folder / "flower/00.jpg")])
    shutil.copy(folder / "flower/00.jpg", folder / "flower/copy.jpg")
    shutil.copy(folder / "flower/00.jpg", folder.parent / "new.jpg")
    lines = (f"flower/00.jpg,relabel,temple,{sha256.upper()},", f"../new.jpg,add,temple,{sha256},")
    manifest, outcomes = correct(folder, *lines)
    assert outcomes == ["applied"] * 3 and len(manifest) == 42
    labels = manifest.set_index("path")["label"]
    for path in (folder / "flower/00.jpg", folder / "flower/copy.jpg", folder.parent / "new.jpg"):
        assert labels[str(path)] == "temple"


def test_linked_images_are_corrected_and_missing_ones_hinder_no_others(folder: Path) -> None:
    (sha256,) = hash_files([str(folder / "flower/00.jpg")])
    linked = folder.parent / "linked"
    for name in ("flower", "temple"):
        (linked / name).mkdir(parents=True)
        for path in sorted((folder / name).iterdir())[:5]:
            (linked / name / path.name).symlink_to(path)
    (linked / "temple" / "broken.jpg").symlink_to(folder / "absent.jpg")
    manifest, outcomes = correct(linked, "flower/01.jpg,drop,,,", f"gone.jpg,drop,,{sha256},")
    assert outcomes == ["applied"] * 2
    left = {Path(path).name for path in manifest["path"] if "/flower/" in path}
    assert left == {"02.jpg", "03.jpg", "04.jpg"}


def test_an_image_that_cannot_be_read_hinders_no_correction(folder: Path) -> None:
    (folder / "flower/fails.jpg").symlink_to("/proc/self/mem")  # whose first byte is none
    shutil.copy(folder / "flower/00.jpg", folder / "flower/copy.jpg")
    (sha256,) = hash_files([str(folder / "flower/00.jpg")])
    lines = (f"flower/00.jpg,relabel,temple,{sha256},", "flower/fails.jpg,drop,,,")
    manifest, outcomes = correct(folder, *lines)
    assert outcomes == ["applied"] * 3  # one of the copy
    assert str(folder / "flower/fails.jpg") not in manifest["path"].tolist()


def test_columns_of_any_name_are_kept(folder: Path) -> None:
    (sha256,) = hash_files([str(folder / "flower/00.jpg")])
    names = ["line", "copy", "level_0", "index"]
    row = {"path": "flower/00.jpg", "sha256": sha256, "action": "drop", "label": ""}
    table = pd.DataFrame([row | dict.fromkeys(names, "007")])
    _, found = apply_corrections(manifest_of(folder), table, folder)
    assert found["outcome"].tolist() == ["applied"]
    assert found[names].to_numpy().tolist() == [["007"] * 4]


def test_what_cannot_be_applied_says_why(folder: Path) -> None:
    (sha256,) = hash_files([str(folder / "flower/00.jpg")])
    expected = {
        f"flower/01.jpg,drop,,{sha256},": "the image has been replaced since",
        "flower/02.jpg,relabel,castle,,": "there is no such class",
        "flower/99.jpg,drop,,,": "there is no such image",
        "flower/04.jpg,drop,,,": "a later line is of this image",
        "flower/04.jpg,fine,,,": "applied",
    }
    manifest, outcomes = correct(folder, *expected)
    assert outcomes == [*expected.values()]
    pd.testing.assert_frame_equal(manifest, manifest_of(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,label\na.jpg,b\n", "has no column action, only path, label"),
        ("path;action\na.jpg;drop\n", "only path;action. Separate columns by commas"),
        ("path,action\na.jpg,drop,\n", "more values than there are columns"),
        ("path,action\n\na.jpg,drop\n\nb.jpg,delete\n", "line 5 of"),
        (
            "path,action\na.jpg,drop\nb.jpg,delete\n",
            "line 3 of .* 'delete' .possible: relabel, drop",
        ),
    ],
)
def test_a_table_that_is_none_of_corrections_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "corrections.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_corrections(tmp_path / "corrections.csv")


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(ACTIONS), st.sampled_from("ab"))))
def test_each_image_has_the_label_that_its_last_line_says(
    lines: list[tuple[int, str, str]],
) -> None:
    paths = [f"/photos/{idx}.jpg" for idx in range(8)]
    manifest = pd.DataFrame({"path": paths, "label": [*"aabbaabb"]})
    rows = [(f"{idx}.jpg", "", action, label) for idx, action, label in lines]
    table = pd.DataFrame(rows, columns=["path", "sha256", "action", "label"], dtype=str)
    corrected, _ = apply_corrections(manifest, table, Path("/photos"))
    wanted = dict(zip(paths, "aabbaabb", strict=True))
    last = {f"/photos/{idx}.jpg": (action, label) for idx, action, label in lines}
    for path, (action, label) in last.items():
        if path in wanted and action == "drop":
            del wanted[path]
        elif path in wanted and action in ("relabel", "add") and label in "aabbaabb":
            wanted[path] = label
    assert dict(zip(corrected["path"], corrected["label"], strict=True)) == wanted


def test_a_run_takes_corrections_and_keeps_what_came_of_them(project: Path, folder: Path) -> None:
    (project / "corrections.csv").write_text("path,action\nflower/00.jpg,drop\nflower/x.jpg,drop\n")
    params = f"--params=dataset.root={folder},dataset.corrections=corrections.csv"
    run_kedro(project, "run", "--pipeline=data_preparation", params)
    assert "Corrections: 1 not: there is no such image" in log(project)
    applied = report(project, "applied_corrections.csv")
    assert applied["path"].tolist() == ["flower/00.jpg", "flower/x.jpg"]
    splits = pd.read_csv(latest(project, "05_model_input/splits.csv"))
    assert "flower/00.jpg" not in splits["path"].tolist()


def test_corrections_that_are_not_there_begin_no_run(project: Path) -> None:
    done = kedro(project, "run", "--params=dataset.corrections=absent.csv")
    assert done.returncode == 1 and "dataset.corrections" in done.stdout + done.stderr
    assert not [*project.glob("data/02_intermediate/*")]
