"""Only a model that is better by more than chance becomes champion, even if two come at once."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import re
import shutil
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from conftest import child_process
from thawline.data.hashing import hash_files
from thawline.data.transforms import Preprocessing
from thawline.datasets import RegistryDataset, ServedModelDataset
from thawline.datasets.registry_dataset import Registry
from thawline.datasets.served_model_dataset import ServedModel
from thawline.errors import ParameterError
from thawline.evaluation.predictions import predict_files
from thawline.networks.building import build_network
from thawline.networks.classifier import Classifier, save_classifier
from thawline.options import ModelOptions, TrainingOptions
from thawline.serving.champion import Champion, Verdict, judge, model_name

TRAINING = TrainingOptions(device="cpu", num_workers=0)
OWN = ModelOptions(backbone="helpers.networks:BrightnessNet", weights="none")
MIDDLE = 128  # of the gray levels: what is darker, is labeled dark
GOOD, MIDDLING, LUCKY, BAD = 128, 80, 86, 40  # so many levels are taken for dark


def classifier(threshold: int, names: tuple[str, str] = ("bright", "dark")) -> Classifier:
    """Return a classifier that takes the gray levels below a threshold for dark."""
    preprocessing = Preprocessing(
        size=4, resize=4, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
    )
    network, _ = build_network(OWN, 2, 4, seed=0)
    with torch.no_grad():
        network.linear.weight[:] = torch.tensor([[255.0], [-255.0]])
        network.linear.bias[:] = torch.tensor([0.5 - threshold, threshold - 0.5])
    return Classifier(network.eval(), names, preprocessing, OWN)


@pytest.fixture(scope="module")
def grays(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return splits of one image for each gray level: the even ones are tested."""
    folder = tmp_path_factory.mktemp("grays")
    rows = []
    for level in range(256):
        path = (folder / f"{level}.png").as_posix()
        Image.new("L", (4, 4), level).save(path)
        split = "test" if level % 2 == 0 else "val" if level % 4 == 1 else "train"
        rows.append((path, "dark" if level < MIDDLE else "bright", int(level < MIDDLE), split))
    return pd.DataFrame(rows, columns=["path", "label", "class_index", "split"])


def answers_of(candidate: Classifier, splits: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the predictions of a candidate on its test images, and their hashes."""
    rows = splits[splits["split"] == "test"].reset_index(drop=True)
    table = predict_files(candidate, rows["path"].tolist(), 64, 1, TRAINING)
    return rows.assign(prediction=table["label"]), hash_files(rows["path"].tolist())


def challenge(threshold: int, splits: pd.DataFrame, champion: Champion | None) -> Verdict:
    answers, seen = answers_of(classifier(threshold), splits), seen_in(splits)
    return judge(*answers, seen, champion, 64, TRAINING)


def seen_in(splits: pd.DataFrame) -> set[str]:
    return {*hash_files(splits.loc[splits["split"] != "test", "path"].tolist())}


def test_only_a_model_that_is_better_by_more_than_chance_wins(grays: pd.DataFrame) -> None:
    champion = Champion("1", classifier(MIDDLING))
    verdicts = {t: challenge(t, grays, champion) for t in (GOOD, LUCKY, MIDDLING, BAD)}
    assert [v.wins for v in verdicts.values()] == [True, False, False, False]
    assert verdicts[GOOD].difference == pytest.approx(24 / 128)
    assert verdicts[GOOD].p_value < 1e-5
    assert 0.05 < verdicts[LUCKY].p_value < 0.5 and "luck" in verdicts[LUCKY].reason
    assert verdicts[MIDDLING].p_value == 1 and "no better" in verdicts[MIDDLING].reason
    assert "1.0000 against 0.8125" in verdicts[GOOD].reason
    assert challenge(BAD, grays, None).wins


def test_images_that_one_of_them_was_trained_on_do_not_count(grays: pd.DataFrame) -> None:
    paths = grays.loc[grays["split"] == "test", "path"].tolist()
    hashes = hash_files(paths)
    verdict = challenge(GOOD, grays, Champion("1", classifier(MIDDLING), frozenset(hashes[:100])))
    assert verdict.images == 28 and not verdict.wins  # the 24 it was wrong on are not among them
    verdict = challenge(GOOD, grays, Champion("1", classifier(MIDDLING), frozenset(hashes)))
    assert not verdict.wins and "trained or validated on 128 of 128 test images" in verdict.reason
    copies = grays.copy()  # of test images in its own training split
    copies.loc[copies["split"] == "train", "path"] = paths[:64]
    assert challenge(GOOD, copies, Champion("1", classifier(MIDDLING))).images == 64


def test_images_of_one_group_count_as_one(grays: pd.DataFrame) -> None:
    champion = Champion("1", classifier(MIDDLING))
    grouped = grays.assign(group=(grays.index // 32).astype(str))  # the champion errs in two of 8
    verdict = challenge(GOOD, grouped, champion)
    assert verdict.images == 128 and verdict.difference == pytest.approx(24 / 128)
    assert not verdict.wins and verdict.p_value > 0.05
    assert "on 128 images of 8 groups" in verdict.reason and "luck" in verdict.reason
    alone = challenge(GOOD, grays.assign(group=grays["path"]), champion)
    assert alone == challenge(GOOD, grays, champion)


def test_answers_that_are_known_are_not_computed_again(grays: pd.DataFrame) -> None:
    paths = grays.loc[grays["split"] == "test", "path"].tolist()
    known = dict.fromkeys(hash_files(paths)[:10], "bright")  # all of them wrong
    verdict = challenge(GOOD, grays, Champion("1", classifier(GOOD), answers=known))
    assert verdict.wins and verdict.difference == pytest.approx(10 / 128)


def test_what_cannot_be_compared_leaves_the_champion(grays: pd.DataFrame) -> None:
    other = Champion("1", classifier(BAD, ("ants", "bees")))
    verdict = challenge(GOOD, grays, other)
    assert not verdict.wins and "knows the classes ants, bees" in verdict.reason
    assert "registry.name" in verdict.reason
    lost = challenge(GOOD, grays, Champion("7", problem="it is gone"))
    assert not lost.wins and "(version 7) cannot be used (it is gone)" in lost.reason


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry")
    connect(folder)
    mlflow.create_experiment("test", artifact_location=(folder / "mlartifacts").as_uri())
    mlflow.set_experiment("test")
    return folder


def connect(folder: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def uris(store: Path, grays: pd.DataFrame) -> dict[int, str]:
    """Return where the model of each threshold was logged."""
    found: dict[int, str] = {}
    for threshold in (GOOD, MIDDLING, LUCKY, BAD):
        dataset = ServedModelDataset("classifier")
        example = Path(grays["path"][0]).read_bytes()
        with mlflow.start_run():
            seen = frozenset(seen_in(grays))
            model = dataclasses.replace(classifier(threshold), seen=seen)
            dataset.save(ServedModel(model, [example]))
        found[threshold] = str(dataset.load())
    return found


def registry(store: Path, name: str | None) -> Registry:
    classifiers = store / "06_models" / "classifier"
    return RegistryDataset(str(classifiers), str(store), "registration.json").load()(name, OWN)


def register(
    store: Path, name: str, uri: str, threshold: int, splits: pd.DataFrame
) -> dict[str, Any]:
    predictions, hashes = answers_of(classifier(threshold), splits)
    answers = dict(zip(hashes, predictions["prediction"], strict=True))
    return registry(store, name).register(
        uri, answers, lambda champion: challenge(threshold, splits, champion)
    )


def champion(name: str) -> str:
    return str(mlflow.MlflowClient().get_model_version_by_alias(name, "champion").version)


def test_the_registry_keeps_the_champion_and_says_why(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    champions, results = [], []
    for threshold in (MIDDLING, BAD, LUCKY, GOOD):
        results.append(register(store, "grays", uris[threshold], threshold, grays))
        champions.append(champion("grays"))
    assert champions == ["1", "1", "1", "4"]
    assert [r["registered_version"] for r in results] == ["1", "2", "3", "4"]
    assert [r["champion_version"] for r in results] == champions
    version = mlflow.MlflowClient().get_model_version("grays", "3")
    assert version.description == version.tags["registration_reason"]
    assert (
        "version 3 of 'grays' does not become champion: test accuracy 0.8359" in version.description
    )
    assert version.tags["compared_images"] == "128" and version.tags["p_value"] == "0.180721"
    answer = mlflow.pyfunc.load_model("models:/grays@champion").predict(grays["path"].tolist())
    assert answer["label"].tolist() == grays["label"].tolist()


def test_a_model_is_found_by_alias_version_run_uri_folder_and_as_the_latest(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(store, "found", uris[BAD], BAD, grays)
    register(store, "found", uris[GOOD], GOOD, grays)
    run = mlflow.MlflowClient().get_logged_model(uris[GOOD].removeprefix("models:/")).source_run_id
    for name, threshold in (("2024", BAD), ("2025", GOOD)):
        save_classifier(classifier(threshold), store / "06_models/classifier" / name / "classifier")
    folder = "06_models/classifier/2025"
    models = registry(store, "found")
    for reference in ("champion", "2", run, uris[GOOD], folder, f"{folder}/classifier", "latest"):
        found = models.load("predict.model", reference).classifier
        assert torch.equal(found.network.linear.bias, classifier(GOOD).network.linear.bias)
    for reference in ("99", "models:/m-00", "0" * 32, "champoin"):
        with pytest.raises(ParameterError, match=rf"predict\.model: .*{reference}.*latest"):
            models.load("predict.model", reference)
    with pytest.raises(ParameterError, match=r"Train one with kedro run --pipeline=finetune"):
        registry(store, "nobody").load("predict.model", "champion")
    with pytest.raises(ParameterError, match=r"registry\.name is null"):
        registry(store, None).load("predict.model", "champion")


def test_a_champion_s_lineage_comes_with_it(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(store, "lineage", uris[BAD], BAD, grays)
    asked: list[Champion | None] = []

    def judge_none(champion: Champion | None) -> Verdict:
        asked.append(champion)
        return Verdict(False, "not judged")

    registry(store, "lineage").register(uris[GOOD], {}, judge_none)
    (champion,) = asked
    assert champion and champion.seen == seen_in(grays)


def test_what_hinders_the_registry_ends_no_run(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    def verdict(uri: str | None, name: str | None) -> str:
        result = registry(store, name).register(uri, {}, lambda _: Verdict(True, "first"))
        return result["registration_reason"]

    assert verdict(None, "x") == "not registered: no MLflow run is active"
    assert verdict(uris[GOOD], None) == "not registered: registry.name is null"
    assert verdict(uris[GOOD], "a/b").startswith("not registered as 'a/b': ")  # MLflow refuses it
    dataset = ServedModelDataset("classifier")
    with mlflow.start_run():
        example = Path(grays["path"][0]).read_bytes()
        dataset.save(ServedModel(classifier(BAD), [example]))
    uri = str(dataset.load())
    register(store, "lost", uri, BAD, grays)
    location = mlflow.get_logged_model(uri.removeprefix("models:/")).artifact_location
    shutil.rmtree(location.removeprefix("file://"))
    result = register(store, "lost", uris[GOOD], GOOD, grays)
    assert result["champion_version"] == "1" and result["registered_version"] == "2"
    assert "(version 1) cannot be used" in result["registration_reason"]


def test_a_champion_that_names_other_code_is_not_imported_and_can_be_named(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    register(store, "foreign", uris[BAD], BAD, grays)
    folder = store / "06_models" / "classifier"
    foreign = RegistryDataset(str(folder), str(store), "registration.json").load()(
        "foreign", ModelOptions()
    )
    with pytest.raises(
        ParameterError, match=r"predict\.model: .*names the factory helpers.networks:Br"
    ):
        foreign.load("predict.model", "champion")
    result = foreign.register(uris[GOOD], {}, lambda champion: challenge(GOOD, grays, champion))
    assert result["champion_version"] == "1"
    assert "cannot be used (model.trust_code:" in result["registration_reason"]


def test_the_default_name_follows_from_data_set_and_classes() -> None:
    digits = [str(label) for label in range(10)]
    assert model_name("sklearn:digits", digits) == "digits-29dd21"
    assert model_name("../my photos/", ("b", "a")) == model_name("/x/my photos", ("a", "b"))
    names = {model_name(root, labels) for root in ("a", "b", "c.csv") for labels in ("xy", "xyz")}
    assert len(names) == 6 and all(re.fullmatch(r"[abc]-[0-9a-f]{6}", name) for name in names)
    roots = ("a.v1", "a.v2", "C:/photos", "蟻/蜂", "", "a.parquet")
    readable = [model_name(root, "xy")[:-7] for root in roots]
    assert readable == ["a-v1", "a-v2", "photos", "蜂", "images", "a"]


def test_predict_takes_the_model_that_the_project_registered_last(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    for name in ("first", "second"):
        register(store, name, uris[GOOD], GOOD, grays)
    with pytest.raises(ParameterError, match="no model of this project is registered yet"):
        registry(store, "auto").load("predict.model", "champion")
    for number, name in enumerate(("second", "first", None)):
        file = store / "registration.json" / f"2026-0{number + 1}" / "registration.json"
        file.parent.mkdir(parents=True)
        (file.parent / "unfinished.7.registration.json").write_text("{")  # of a killed process
        kept = {"registered_model": name, "registered_version": "1"} if name else {}
        file.write_text(json.dumps(kept | {"registration_reason": "…"}))
    found = registry(store, "auto").load("predict.model", "champion")
    assert found.name == "models:/first/1"
    year = datetime.fromtimestamp(found.saved_at or 0).year
    assert str(found).startswith(f"models:/first/1 (2 classes: bright, dark; saved {year}-")


def test_a_newer_model_that_knows_other_classes_is_told(
    store: Path, uris: dict[int, str], grays: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    register(store, "shared", uris[GOOD], GOOD, grays)
    registry(store, "shared").load("predict.model", "champion")
    assert not caplog.messages
    dataset = ServedModelDataset("classifier")
    with mlflow.start_run():
        other = classifier(GOOD, ("ant", "bee"))
        dataset.save(ServedModel(other, [Path(grays["path"][0]).read_bytes()]))
    register(store, "shared", str(dataset.load()), GOOD, grays)
    assert champion("shared") == "1"
    caplog.clear()
    registry(store, "shared").load("predict.model", "champion")
    (said,) = [message for message in caplog.messages if "knows other classes" in message]
    assert said == (
        "Version 2 of 'shared' is newer than models:/shared/1 and knows other classes (2 classes:"
        " ant, bee). To use it, set predict.model=2."
    )


def test_a_newer_model_that_cannot_be_looked_at_hinders_nothing(
    store: Path, uris: dict[int, str], grays: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "somebody's"
    register(store, name, uris[GOOD], GOOD, grays)
    broken = store / "06_models" / "classifier" / "9999" / "classifier" / "classifier.json"
    broken.parent.mkdir(parents=True)

    def away(*_: object, **__: object) -> None:
        raise MlflowException("the server is away")

    for content in ("", "[]", "{}", "{"):
        broken.write_text(content)
        assert registry(store, name).load("predict.model", "champion").name.endswith("/1")
    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", away)
    assert registry(store, name).load("predict.model", "champion").name.endswith("/1")
    shutil.rmtree(broken.parents[1])


NAMES = ("empty", "good comes first", "good comes second", "at the same moment")


def register_beside_another(
    store: Path, uri: str, threshold: int, splits: pd.DataFrame, barrier: Any
) -> None:
    """Register one model under each name, at the same time as the other process."""
    connect(store)
    predictions, hashes = answers_of(classifier(threshold), splits)
    late = {"good comes first": MIDDLING, "good comes second": GOOD}
    for name in NAMES:
        judged = []

        def wait_and_judge(champion: Champion | None, name: str = name, judged: list = judged):  # type: ignore[no-untyped-def]
            verdict = judge(predictions, hashes, seen_in(splits), champion, 64, TRAINING)
            if not judged:  # both have compared themselves with the same champion
                barrier.wait(120)
                time.sleep(1 if late.get(name) == threshold else 0)
            judged.append(verdict)
            return verdict

        result = registry(store, name).register(uri, {}, wait_and_judge)
        assert "registered_version" in result, result
        barrier.wait(120)


def test_two_registrations_at_once_end_with_the_right_champion(
    store: Path, uris: dict[int, str], grays: pd.DataFrame
) -> None:
    for name in NAMES[1:]:
        register(store, name, uris[BAD], BAD, grays)
    barrier = multiprocessing.get_context("forkserver").Barrier(2)
    processes = [
        child_process(register_beside_another, store, uris[threshold], threshold, grays, barrier)
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
        version = client.get_model_version(name, model.aliases["champion"])
        assert version.source == uris[GOOD], name
        assert len(client.search_model_versions(f"name='{name}'")) == (2 if name == "empty" else 3)
