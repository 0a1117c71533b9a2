"""Each check finds what is wrong, says what to do, and tells no password."""

import shutil
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from thawline.cli import doctor, doctor_checks
from thawline.errors import CheckpointError, DataError, ParameterError, ThawlineError
from thawline.options import DatasetOptions, ModelOptions, TrainingOptions


def test_a_check_is_ok_or_a_warning_or_a_problem() -> None:
    def check(error: Exception | None) -> str:
        if error:
            raise error
        return "found"

    assert doctor.run_check("a", check, None) == ("a", "ok", "found")
    advice = doctor.Advice("few")
    assert doctor.run_check("a", check, advice) == ("a", "warning", "few")
    for error in (DataError("none"), PermissionError("none")):
        assert doctor.run_check("a", check, error) == ("a", "problem", "none")


def test_versions_that_do_not_fit_are_named_with_their_repair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doctor.check_versions().startswith("Python 3.")
    installed = {"torch": "2.0.1", "kedro": "2.1.0"}
    monkeypatch.setattr(doctor, "version", lambda name: installed.get(name) or "99")
    with pytest.raises(ThawlineError) as raised:
        doctor.check_versions()
    found = dict(line.split(": ", 1) for line in str(raised.value).splitlines()[:-1])
    assert found["torch"].startswith("2.0.1 is here") and 'pip install "torch>=' in found["torch"]
    assert 'thawline needs another: pip install "kedro~=1.7"' in found["kedro"]


def test_a_torch_that_torchvision_was_not_made_for_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def needs(package: str) -> list[str]:
        return {"thawline": ["torch>=2.11"], "torchvision": ["torch==2.0.1", "numpy"]}[package]

    monkeypatch.setattr(doctor, "requires", needs)
    with pytest.raises(ThawlineError, match=r'torchvision needs another: .* "torch==2\.0\.1"'):
        doctor.check_versions()


def test_what_is_missing_is_said_before_anything_is_imported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nothing_but_thawline(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", nothing_but_thawline)
    (finding,) = doctor.examine()
    assert finding.state == "problem" and "nothing is here" in finding.message
    assert finding.message.endswith("The rest was not checked.")


def test_a_device_that_is_not_there_is_a_problem() -> None:
    assert doctor_checks.check_device(TrainingOptions(device="cpu")).startswith("cpu, ")
    absent = "mps" if not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(ParameterError, match=r"training\.device"):
        doctor_checks.check_device(TrainingOptions(device=absent))


def test_weights_are_found_in_the_cache_or_said_to_be_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for backbone in ("resnet18", "timm/resnet34"):
        with pytest.raises(doctor.Advice, match=r"model\.weights=FILE"):
            doctor_checks.check_weights(ModelOptions(backbone=backbone))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth").touch()
    for options in (ModelOptions(backbone="resnet18"), ModelOptions()):
        assert doctor_checks.check_weights(options).startswith(f"{options.backbone}: ")


def test_a_file_of_weights_that_runs_code_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "best.pth"
    torch.save({"weight": torch.zeros(3)}, file)
    assert doctor_checks.check_weights(ModelOptions(weights=str(file))).startswith(f"{file} is a")
    torch.save(torch.nn.Linear(1, 1), file)
    with pytest.raises(CheckpointError, match="a whole pickled network"):
        doctor_checks.check_weights(ModelOptions(weights=str(file)))


def test_unreadable_images_and_small_classes_are_warned_of(photos: Path, tmp_path: Path) -> None:
    root = shutil.copytree(photos, tmp_path / "photos")
    options = DatasetOptions(root="photos")
    found = doctor_checks.check_data(options, 0, tmp_path, tmp_path)
    assert "photos: 40 images of 2 classes" in found and found.endswith("can be read")
    (root / "temple" / "00.jpg").write_bytes(b"no image")
    with pytest.raises(doctor.Advice, match=r"1 of 10 that were tried .*00\.jpg.*[^k]$"):
        doctor_checks.check_data(options, 0, tmp_path, tmp_path)
    (root / "temple" / "19.jpg").unlink()
    with pytest.raises(doctor.Advice, match=r"temple has 19, the fewest; .*luck$"):
        doctor_checks.check_data(options, 0, tmp_path, tmp_path)
    shutil.rmtree(root / "flower")
    with pytest.raises(DataError, match="two classes"):
        doctor_checks.check_data(options, 0, tmp_path, tmp_path)


def test_a_data_set_that_is_to_be_downloaded_is_not_downloaded(tmp_path: Path) -> None:
    with pytest.raises(doctor.Advice, match="the first run downloads it"):
        options = DatasetOptions(root="torchvision:Flowers102")
        doctor_checks.check_data(options, 0, tmp_path, tmp_path)
    assert "scikit-learn" in doctor_checks.check_data(DatasetOptions(), 0, tmp_path, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_with_too_little_room_for_the_store_is_warned_of(tmp_path: Path) -> None:
    assert doctor_checks.check_activations(tmp_path / "store", 1e-3) == "0.0 of at most 0.001 GB"
    with pytest.raises(doctor.Advice, match=r"lower activations\.max_gb"):
        doctor_checks.check_activations(tmp_path / "store", 1e9)


def test_shared_memory_that_is_too_small_for_decoders_is_told_with_the_cure(tmp_path: Path) -> None:
    options = TrainingOptions(num_workers=4, batch_size=32)
    assert "MB in" in doctor_checks.check_shared_memory(options, 224, tmp_path)
    with pytest.raises(doctor.Advice, match=r"--shm-size=1g.*training\.num_workers"):
        doctor_checks.check_shared_memory(options, 10_000_000, tmp_path)
    without = TrainingOptions(num_workers=0)
    assert doctor_checks.check_shared_memory(without, 224, tmp_path) == ""
    assert doctor_checks.check_shared_memory(options, 224, tmp_path / "absent") == ""
