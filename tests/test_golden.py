"""Numbers and files of commit 679d403: what moved since has moved knowingly."""

import json
import logging
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from golden import records, structure
from thawline.data.transforms import build_transforms
from thawline.networks.building import IMAGENET, build_network
from thawline.networks.classifier import load_classifier
from thawline.options import TransformOptions
from thawline.sweep import storage as sweep_storage
from thawline.sweep import study as sweeping
from thawline.thaw.cache import ActivationCache
from thawline.training.loop import train
from thawline.training.setup import prepare
from thawline.training.state import TrainingCheckpoints

OLD = Path(__file__).parent / "golden" / "written_at_679d403"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return records.compute_records(tmp_path_factory.mktemp("golden"))


@pytest.fixture
def splits(tmp_path: Path) -> Any:
    return records.fixed_splits(records.write_digits(tmp_path / "few", images_per_class=8))


@pytest.mark.xdist_group("golden")
@pytest.mark.parametrize(
    "name", ["small network", "EfficientNet-Lite0", "splits", "study", "paired_test", "run"]
)
def test_a_golden_record_holds(name: str, found: dict[str, Any]) -> None:
    golden = json.loads(records.RECORDS.read_text(encoding="utf-8"))
    _assert_same(json.loads(json.dumps(found[name])), golden[name], name)


def _assert_same(found: Any, golden: Any, place: str) -> None:
    """Compare plain data: numbers within 1e-5, all else exactly."""
    if isinstance(golden, dict):
        assert found.keys() == golden.keys(), place
        for key, value in golden.items():
            _assert_same(found[key], value, f"{place}.{key}")
    elif isinstance(golden, list):
        assert len(found) == len(golden), place
        for idx, value in enumerate(golden):
            _assert_same(found[idx], value, f"{place}.{idx}")
    elif isinstance(golden, float):
        assert found == pytest.approx(golden, rel=1e-5, abs=1e-5), place
    else:
        assert found == golden, place


@pytest.mark.parametrize("version", [1, 2])
def test_a_classifier_of_an_earlier_format_gives_its_answers(version: int) -> None:
    classifier = load_classifier(OLD / f"classifier_{version}")
    images = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    expected = torch.tensor(json.loads((OLD / "answers.json").read_text(encoding="utf-8")))
    torch.testing.assert_close(classifier.network(images), expected)
    assert classifier.class_names == ("ants", "bees")


def test_an_earlier_training_goes_on_or_is_named_and_an_earlier_store_is_no_obstacle(
    tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(OLD, tmp_path / "old")
    store = ActivationCache(tmp_path / "old" / "activations", max_gb=1)
    assert len(store.contents()) == 2
    transforms = build_transforms(TransformOptions(size=32, min_crop_scale=0.08), IMAGENET, seed=0)
    network, _ = build_network(records.SMALL_NET, 10, 32, seed=0)
    options = records.FP32.model_copy(update={"resume": True})
    parameters = records.PARAMETERS.model_copy(update={"training": options})
    setup = prepare(parameters, network, splits, transforms, store)
    states = TrainingCheckpoints(tmp_path / "old" / "training_states")
    with caplog.at_level(logging.INFO):
        history = train(setup, [records.HEAD, records.ALL], states).history
    said = " ".join(caplog.messages)
    assert "Resuming after epoch 1" in said or "1 with others" in said
    golden = json.loads(records.RECORDS.read_text(encoding="utf-8"))["small network"]
    _assert_same(history["val_loss"].tolist(), golden["epochs"], "epochs")


def test_an_earlier_study_goes_on_or_what_is_different_is_named(
    tmp_path: Path, splits: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with sqlite3.connect(tmp_path / "sweep.db") as database:
        database.executescript((OLD / "sweep.sql").read_text(encoding="utf-8"))
    storage = sweep_storage.open_storage(f"sqlite:///{tmp_path}/sweep.db")
    with caplog.at_level(logging.INFO):
        study = sweeping.open_study(storage, records.default_parameters(), splits)
    said = " ".join(caplog.messages)
    assert "2 finished trials" in said or "had other" in said
    assert study.study_name.startswith("sweep-")


def test_pipelines_catalog_parameters_and_commands_are_those_that_are_written_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("THAWLINE_SWEEP_STORAGE", raising=False)
    found = json.loads(json.dumps(structure.describe_structure()))
    golden = json.loads(structure.STRUCTURE.read_text(encoding="utf-8"))
    assert [len(part) for part in golden.values()] == [12, 94, 195, 15]
    for part, names in golden.items():
        assert found[part] == names, part
