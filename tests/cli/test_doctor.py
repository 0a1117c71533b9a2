"""Each check finds what is wrong, says what to do, and tells no password."""

from __future__ import annotations

import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from thawline.cli import doctor
from thawline.options import DatasetOptions, ModelOptions, TrainingOptions


def only(findings: list[doctor.CheckResult]) -> doctor.CheckResult:
    (finding,) = findings
    return finding


def test_versions_that_do_not_fit_are_named_with_their_repair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert only(doctor.check_versions("thawline")).state == "ok"
    installed = {"torch": "2.0.1", "kedro": "2.1.0"}
    monkeypatch.setattr(doctor, "version", lambda name: installed.get(name) or "99")
    found = {finding.name: finding for finding in doctor.check_versions("thawline")}
    assert found["torch"].state == "problem" and 'pip install "torch>=' in found["torch"].message
    assert "2.1.0 is here, ~=1.7 is needed" in found["kedro"].message


def test_a_torch_that_torchvision_was_not_made_for_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def needs(package: str) -> list[str]:
        return {"thawline": ["torch>=2.11"], "torchvision": ["torch==2.0.1", "numpy"]}[package]

    monkeypatch.setattr(doctor, "requires", needs)
    finding = only(doctor.check_versions("thawline"))
    assert finding.state == "problem" and "==2.0.1 is needed" in finding.message
    assert "torchvision" in finding.message


def test_what_is_missing_is_said_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing_but_thawline(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", nothing_but_thawline)
    findings = list(doctor.examine(Path()))
    assert any("not installed: pip install" in finding.message for finding in findings)
    assert findings[-1].name == "the rest"


def test_a_device_that_is_not_there_is_a_problem() -> None:
    assert doctor.check_device(TrainingOptions(device="cpu"))[0].message.startswith("cpu, ")
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    finding = only(doctor.check_device(TrainingOptions(device=absent)))
    assert finding.state == "problem" and "training.device" in finding.message


def test_weights_are_found_in_the_cache_or_said_to_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    finding = only(doctor.check_weights(ModelOptions(backbone="resnet18")))
    assert finding.state == "warning" and "model.weights=FILE" in finding.message
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").touch()
    assert only(doctor.check_weights(ModelOptions(backbone="resnet18"))).state == "ok"
    assert only(doctor.check_weights(ModelOptions(backbone="timm/resnet34"))).state == "warning"
    assert only(doctor.check_weights(ModelOptions())).state == "ok"


def test_a_file_of_weights_that_runs_code_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "best.pth"
    torch.save({"weight": torch.zeros(3)}, file)
    assert only(doctor.check_weights(ModelOptions(weights=str(file)))).state == "ok"
    torch.save(torch.nn.Linear(1, 1), file)
    finding = only(doctor.check_weights(ModelOptions(weights=str(file))))
    assert finding.state == "problem" and "a whole pickled network" in finding.message


def test_unreadable_images_and_small_classes_are_warned_of(photos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    options = DatasetOptions(root="photos")
    data, images = doctor.check_data(options, 0, tmp_path, tmp_path)
    assert (data.state, images.state) == ("ok", "ok")
    (root / "temple" / "00.jpg").write_bytes(b"no image")
    (root / "temple" / "19.jpg").unlink()
    data, images = doctor.check_data(options, 0, tmp_path, tmp_path)
    assert data.state == "warning" and "temple has 19, the fewest" in data.message
    assert images.state == "warning" and "00.jpg" in images.message
    shutil.rmtree(root / "flower")
    finding = only(doctor.check_data(options, 0, tmp_path, tmp_path))
    assert finding.state == "problem" and "two classes" in finding.message


def test_a_data_set_that_is_to_be_downloaded_is_not_downloaded(tmp_path: Path) -> None:
    options = DatasetOptions(root="torchvision:Flowers102")
    assert only(doctor.check_data(options, 0, tmp_path, tmp_path)).state == "warning"
    assert only(doctor.check_data(DatasetOptions(), 0, tmp_path, tmp_path)).state == "ok"
    assert not list(tmp_path.iterdir())


def test_a_disk_with_too_little_room_for_the_store_is_warned_of(tmp_path: Path) -> None:
    assert doctor.check_activations(tmp_path / "store", 1e-3)[0].state == "ok"
    finding = only(doctor.check_activations(tmp_path / "store", 1e9))
    assert finding.state == "warning" and "lower activations.max_gb" in finding.message


def test_shared_memory_that_is_too_small_for_decoders_is_told_with_the_cure(tmp_path: Path) -> None:
    options = TrainingOptions(num_workers=4, batch_size=32)
    finding = only(doctor.check_shared_memory(options, 224, tmp_path))
    assert finding.state == "ok" and "MB in" in finding.message
    finding = only(doctor.check_shared_memory(options, 10_000_000, tmp_path))
    assert finding.state == "warning" and "--shm-size=1g" in finding.message
    assert "training.num_workers" in finding.message
    assert doctor.check_shared_memory(TrainingOptions(num_workers=0), 224, tmp_path) == []
    assert doctor.check_shared_memory(options, 224, tmp_path / "absent") == []
