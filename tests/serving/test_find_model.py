"""A model is found by every name that it has, and no look-up runs its code."""

import json
import shutil
from datetime import datetime

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from helpers.gray_models import (
    BAD,
    GOOD,
    OWN,
    classifier,
    log_model,
    open_registry,
    register,
    write_grays,
)
from thawline.errors import CheckpointError, ParameterError
from thawline.networks.classifier import save_classifier
from thawline.options import ModelOptions
from thawline.serving.find_model import FoundModel, find_model
from thawline.serving.registry import ProjectFolders, find_version


@pytest.fixture(scope="module")
def grays(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return write_grays(tmp_path_factory.mktemp("grays"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> ProjectFolders:
    return open_registry(tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def uris(folders: ProjectFolders, grays: pd.DataFrame) -> dict[int, str]:
    """Return where the model of each threshold was logged."""
    return {threshold: log_model(classifier(threshold), grays) for threshold in (GOOD, BAD)}


def find(reference: str, name: str | None, folders: ProjectFolders) -> FoundModel:
    return find_model("predict.model", reference, name, OWN, folders)


def test_a_model_is_found_by_alias_version_run_uri_folder_and_as_the_latest(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(folders, "found", uris[BAD], BAD, grays)
    register(folders, "found", uris[GOOD], GOOD, grays)
    run = mlflow.MlflowClient().get_logged_model(uris[GOOD].removeprefix("models:/")).source_run_id
    for name, threshold in (("2024", BAD), ("2025", GOOD)):
        save_classifier(classifier(threshold), folders.classifiers / name / "classifier")
    folder = "06_models/classifier/2025"
    for reference in ("champion", "2", run, uris[GOOD], folder, f"{folder}/classifier", "latest"):
        found = find(reference, "found", folders).classifier
        assert torch.equal(found.network.linear.bias, classifier(GOOD).network.linear.bias)
    for reference in ("99", "models:/m-00", "0" * 32, "champoin"):
        with pytest.raises(ParameterError, match=rf"predict\.model: .*{reference}.*latest"):
            find(reference, "found", folders)
    with pytest.raises(ParameterError, match=r"Train one with thawline finetune"):
        find("champion", "nobody", folders)
    with pytest.raises(ParameterError, match=r"registry\.name is null"):
        find("champion", None, folders)


def test_a_folder_without_a_classifier_is_named(folders: ProjectFolders) -> None:
    (folders.base / "photos").mkdir()
    with pytest.raises(CheckpointError, match="photos"):
        find("photos", "found", folders)


def test_a_model_that_names_other_code_is_not_imported(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(folders, "foreign", uris[BAD], BAD, grays)
    said = r"predict\.model: .*names the factory helpers.networks:Br"
    with pytest.raises(ParameterError, match=said):
        find_model("predict.model", "champion", "foreign", ModelOptions(), folders)


def test_predict_takes_the_model_that_the_project_registered_last(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    for name in ("first", "second"):
        register(folders, name, uris[GOOD], GOOD, grays)
    with pytest.raises(ParameterError, match="this project has registered no model yet"):
        find("champion", "auto", folders)
    for number, name in enumerate(("second", "first", None)):
        file = folders.registrations / f"2026-0{number + 1}" / "registration.json"
        file.parent.mkdir(parents=True)
        (file.parent / "unfinished.7.registration.json").write_text("{")  # of a killed process
        kept = {"registered_model": name, "registered_version": "1"} if name else {}
        file.write_text(json.dumps(kept | {"registration_reason": "…"}))
    found = find("champion", "auto", folders)
    assert found.name == "models:/first/1"
    year = datetime.fromtimestamp(found.saved_at or 0).year
    assert str(found).startswith(f"models:/first/1 (2 classes: bright, dark; saved {year}-")


def test_a_newer_model_that_has_other_classes_causes_a_warning(
    folders: ProjectFolders,
    uris: dict[int, str],
    grays: pd.DataFrame,
    caplog: pytest.LogCaptureFixture,
) -> None:
    register(folders, "shared", uris[GOOD], GOOD, grays)
    caplog.clear()
    find("champion", "shared", folders)
    assert not caplog.messages
    register(folders, "shared", log_model(classifier(GOOD, ("ant", "bee")), grays), GOOD, grays)
    assert find_version("shared", "champion") == "1"
    caplog.clear()
    find("champion", "shared", folders)
    (said,) = [message for message in caplog.messages if "has other classes" in message]
    assert said == (
        "Version 2 of 'shared' is newer than models:/shared/1 and has other classes (2 classes:"
        " ant, bee). To use it, set predict.model=2."
    )


def test_a_newer_model_that_cannot_be_looked_at_hinders_nothing(
    folders: ProjectFolders,
    uris: dict[int, str],
    grays: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    name = "somebody's"
    register(folders, name, uris[GOOD], GOOD, grays)
    broken = folders.classifiers / "9999" / "classifier" / "classifier.json"
    broken.parent.mkdir(parents=True)

    def away(*_: object, **__: object) -> None:
        raise MlflowException("the server is away")

    for content in ("", "[]", "{}", "{"):
        broken.write_text(content)
        assert find("champion", name, folders).name.endswith("/1")
    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", away)
    assert find("champion", name, folders).name.endswith("/1")
    broken.write_text('{"class_names": ["ant", "bee"]}')
    caplog.clear()
    find("champion", name, folders)
    assert f"The classifier {broken.parent} is newer" in caplog.text
    shutil.rmtree(broken.parents[1])
