"""Only a model that is better by more than chance becomes champion, even if two come at once."""

import dataclasses
import multiprocessing
import shutil
import time
from collections.abc import Mapping
from typing import Any

import mlflow
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from conftest import child_process
from helpers.gray_models import (
    BAD,
    GOOD,
    LUCKY,
    MIDDLING,
    candidate,
    classifier,
    connect,
    log_model,
    open_registry,
    parameters_of,
    register,
    seen_in,
    write_grays,
)
from thawline.data.decoding import hash_files
from thawline.networks.classifier import Classifier
from thawline.options import EvaluationOptions, ModelOptions
from thawline.serving import champion as champion_module
from thawline.serving import registry
from thawline.serving.champion import Verdict, compare_with_champion, register_model
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
    return {t: log_model(candidate(t, grays)[0], grays) for t in (GOOD, MIDDLING, LUCKY, BAD)}


def challenge(
    threshold: int,
    splits: pd.DataFrame,
    champion: Classifier,
    labels: Mapping[str, str] = {},
    **options: Any,
) -> Verdict:
    own, rows = candidate(threshold, splits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "load_logged", lambda *_: (champion, labels))
        return compare_with_champion(own, rows, "grays", "1", parameters_of(None, **options))


def difference(verdict: Verdict) -> float:
    return float(verdict.figures["accuracy_difference"])


def p_value(verdict: Verdict) -> float:
    return float(verdict.figures["p_value"])


def test_only_a_model_that_is_better_by_more_than_chance_wins(grays: pd.DataFrame) -> None:
    verdicts = {t: challenge(t, grays, classifier(MIDDLING)) for t in (GOOD, LUCKY, MIDDLING, BAD)}
    assert [v.wins for v in verdicts.values()] == [True, False, False, False]
    assert difference(verdicts[GOOD]) == pytest.approx(24 / 128)
    assert p_value(verdicts[GOOD]) < 1e-5
    assert 0.05 < p_value(verdicts[LUCKY]) < 0.5
    assert "better, but not significantly" in verdicts[LUCKY].reason
    assert p_value(verdicts[MIDDLING]) == 1 and "not better" in verdicts[MIDDLING].reason
    assert "1.0000, champion (version 1) 0.8125" in verdicts[GOOD].reason


def test_images_that_one_of_them_was_trained_on_do_not_count(grays: pd.DataFrame) -> None:
    paths = grays.loc[grays["split"] == "test", "path"].tolist()
    hashes = hash_files(paths)

    def seen(images: list[str]) -> Classifier:
        return dataclasses.replace(classifier(MIDDLING), seen=frozenset(images))

    verdict = challenge(GOOD, grays, seen(hashes[:100]))  # with the 24 that it was wrong on
    assert verdict.figures["compared_images"] == "28" and not verdict.wins
    verdict = challenge(GOOD, grays, seen(hashes))
    assert not verdict.wins and "trained or validated on 128 of 128 test images" in verdict.reason
    copies = grays.copy()  # of test images in its own training split
    copies.loc[copies["split"] == "train", "path"] = paths[:64]
    assert challenge(GOOD, copies, classifier(MIDDLING)).figures["compared_images"] == "64"


def test_images_of_one_group_count_as_one(grays: pd.DataFrame) -> None:
    champion = classifier(MIDDLING)
    grouped = grays.assign(group=(grays.index // 32).astype(str))  # the champion errs in two of 8
    verdict = challenge(GOOD, grouped, champion)
    assert verdict.figures["compared_images"] == "128"
    assert difference(verdict) == pytest.approx(24 / 128)
    assert not verdict.wins and p_value(verdict) > 0.05
    assert "on 128 images of 8 groups" in verdict.reason
    alone = challenge(GOOD, grays.assign(group=grays["path"]), champion)
    assert alone == challenge(GOOD, grays, champion)


def test_labels_that_are_known_are_not_predicted_again(grays: pd.DataFrame) -> None:
    paths = grays.loc[grays["split"] == "test", "path"].tolist()
    known = dict.fromkeys(hash_files(paths)[:10], "bright")  # all of them wrong
    verdict = challenge(GOOD, grays, classifier(GOOD), known)
    assert verdict.wins and difference(verdict) == pytest.approx(10 / 128)
    evaluation = EvaluationOptions(tta="flip")  # as the known ones need not have been predicted
    verdict = challenge(GOOD, grays, classifier(GOOD), known, evaluation=evaluation)
    assert not verdict.wins and difference(verdict) == 0


def test_what_cannot_be_compared_leaves_the_champion(grays: pd.DataFrame) -> None:
    verdict = challenge(GOOD, grays, classifier(BAD, ("ants", "bees")))
    assert not verdict.wins and "has the classes ants, bees" in verdict.reason
    assert "registry.name" in verdict.reason


def test_the_registry_keeps_the_champion_and_says_why(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    champions, results = [], []
    for threshold in (MIDDLING, BAD, LUCKY, GOOD):
        results.append(register(folders, "grays", uris[threshold], threshold, grays))
        champions.append(find_version("grays", "champion"))
    assert champions == ["1", "1", "1", "4"]
    assert [r["registered_version"] for r in results] == ["1", "2", "3", "4"]
    assert [r["champion_version"] for r in results] == champions
    version = mlflow.MlflowClient().get_model_version("grays", "3")
    assert version.tags["registration_reason"] in version.description
    said = "version 3 of 'grays' does not become champion: test accuracy 0.8359"
    assert said in version.description
    assert version.tags["compared_images"] == "128" and version.tags["p_value"] == "0.180721"
    answer = mlflow.pyfunc.load_model("models:/grays@champion").predict(grays["path"].tolist())
    assert answer["label"].tolist() == grays["label"].tolist()


def test_a_champion_s_lineage_and_its_labels_come_with_it(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(folders, "lineage", uris[BAD], BAD, grays)
    champion, labels = registry.load_logged("models:/lineage/1", parameters_of(None).model)
    assert champion.seen == seen_in(grays)
    _, rows = candidate(BAD, grays)
    assert labels == dict(zip(rows["sha256"], rows["prediction"], strict=True))


def test_what_hinders_the_registry_ends_no_run(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    model, rows = candidate(GOOD, grays)

    def reason(uri: str | None, name: str | None) -> str:
        result = register_model(parameters_of(name), uri, rows, model, folders)
        assert "--model latest" in result["next_prediction"]
        return result["registration_reason"]

    assert reason(None, "x") == "not registered: no MLflow run is active"
    assert reason(uris[GOOD], None) == "not registered: registry.name is null"
    assert reason(uris[GOOD], "a/b").startswith("not registered as 'a/b': ")  # MLflow refuses it
    uri = log_model(classifier(BAD), grays)
    register(folders, "lost", uri, BAD, grays)
    location = mlflow.get_logged_model(uri.removeprefix("models:/")).artifact_location
    shutil.rmtree(location.removeprefix("file://"))
    result = register(folders, "lost", uris[GOOD], GOOD, grays)
    assert result["champion_version"] == "1" and result["registered_version"] == "2"
    assert "(version 1) cannot be used" in result["registration_reason"]


def test_an_outage_of_mlflow_is_not_blamed_on_the_champion(
    folders: ProjectFolders,
    uris: dict[int, str],
    grays: pd.DataFrame,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(folders, "outage", uris[BAD], BAD, grays)

    def away(*_: object, **__: object) -> None:
        monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", away)
        raise MlflowException("API request to http://host failed")

    monkeypatch.setattr(mlflow.artifacts, "download_artifacts", away)
    reason = register(folders, "outage", uris[GOOD], GOOD, grays)["registration_reason"]
    assert reason.endswith("API request to http://host failed") and "be used" not in reason


def test_a_champion_that_names_other_code_is_not_imported(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(folders, "foreign", uris[BAD], BAD, grays)
    parameters = parameters_of("foreign", model=ModelOptions())
    model, rows = candidate(GOOD, grays)
    result = register_model(parameters, uris[GOOD], rows, model, folders)
    assert result["champion_version"] == "1"
    assert "cannot be used (model.trust_code:" in result["registration_reason"]


NAMES = ("empty", "good comes first", "good comes second", "at the same moment")


def register_beside_another(
    folders: ProjectFolders, uri: str, threshold: int, splits: pd.DataFrame, barrier: Any
) -> None:
    """Register one model under each name, at the same time as the other process."""
    connect(folders.base)
    late = {"good comes first": MIDDLING, "good comes second": GOOD}
    compared: list[Verdict] = []
    delay = 0

    def compare_and_wait(*arguments: Any) -> Verdict:
        verdict = compare_with_champion(*arguments)
        if not compared:  # both have compared themselves with the same champion
            barrier.wait(120)
            time.sleep(delay)
        compared.append(verdict)
        return verdict

    champion_module.compare_with_champion = compare_and_wait
    for name in NAMES:
        compared.clear()
        delay = 1 if late.get(name) == threshold else 0
        result = register(folders, name, uri, threshold, splits)
        assert "registered_version" in result, result
        barrier.wait(120)


@pytest.mark.slow
def test_two_registrations_at_once_end_with_the_right_champion(
    folders: ProjectFolders, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    for name in NAMES[1:]:
        register(folders, name, uris[BAD], BAD, grays)
    barrier = multiprocessing.get_context("forkserver").Barrier(2)
    processes = [
        child_process(register_beside_another, folders, uris[threshold], threshold, grays, barrier)
        for threshold in (GOOD, MIDDLING)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(200)
    assert [process.exitcode for process in processes] == [0, 0]
    client = mlflow.MlflowClient()
    for name in NAMES:
        model = client.get_registered_model(name)
        assert list(model.aliases) == ["champion"]
        assert client.get_model_version(name, model.aliases["champion"]).source == uris[GOOD], name
        assert len(client.search_model_versions(f"name='{name}'")) == (2 if name == "empty" else 3)
