"""Benchmarks run, at sizes that take seconds: what they measure is nobody's business here."""

import json
import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from conftest import QUICK, ROOT, run_command


@pytest.mark.slow
def test_a_dry_run_takes_every_step_of_the_gpu_benchmark_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    said = benchmark("gpu", "--dry-run", f"--json={file}")
    results = json.loads(file.read_text())
    sections = (
        "line", "precision", "decoding", "store", "epochs", "workers", "compilation", "checks",
    )  # fmt: skip
    for section in sections:
        assert f"\n{section}\n" in said and results[section]


@pytest.mark.slow
def test_each_precision_is_measured_beside_the_one_that_is_chosen() -> None:
    few = ("--backbones=resnet18", "--batch-size=2", "--steps=1", "--no-compile")
    row = r"\| resnet18 \|( [\d.]+ \|)+ (fp32|bf16) \| \d\.\d\d \|"
    assert re.search(row, benchmark("precision", *few))


@pytest.mark.slow
def test_growth_is_measured_from_the_folder_to_the_report() -> None:
    settings = (
        "model.backbone=resnet18", "model.weights=none", "transforms.size=32",
        "strategy=head_only", "training.epochs=1",
    )  # fmt: skip
    said = benchmark("growth", "--images", "60", "--side=32", "--set", *settings)
    assert re.search(r"\| train_model \| [\d.]+ \|", said)
    assert re.search(r"\| whole command \| [\d.]+ \| nan \|", said)


@pytest.mark.slow
def test_speed_is_measured_beside_the_plain_loop(photos: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(photos, tmp_path / split)
    said = benchmark(
        "speed", f"--root={tmp_path}", "--backbones=resnet18", "--strategies", "head_only",
        "--views", "1", "--epochs=2", "--plain-epochs=1", "--batch-size=8",
    )  # fmt: skip
    assert re.search(r"\| head_only \| tutorial loop \(1 epochs, x 2\) \| [\d.]+ \|", said)
    assert re.search(r"\| all_stages \| empty store \| [\d.]+ \| [\d.]+x \|", said)


@pytest.mark.slow
def test_the_store_is_measured() -> None:
    said = benchmark("store", "--entries=500", "--values=16")
    assert re.search(r"\| 500 \| 1 \| 0 \| [\d.]+ \| \d+ \|", said)


def measure_accuracy(photos: Path, *options: str) -> str:
    settings = ("--strategies", "head_only", "--set", *QUICK.split(","))
    return benchmark("accuracy", f"--data={photos}", *settings, *options)


@pytest.mark.slow
def test_an_interrupted_table_of_accuracies_goes_on(photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "accuracy.jsonl"
    task = {
        "data": str(photos), "method": "head_only", "seed": 0, "per_class": None,
        "changes": QUICK.split(","),
    }  # fmt: skip
    result = {"validation": 0.5, "test": 0.0125, "macro_f1": 0.25, "correct": [0, 1], "seconds": 8}
    result["trained"] = "none"
    file.write_text(json.dumps({"task": task, "result": result}) + "\n")
    said = measure_accuracy(photos, "--seeds=2", f"--results={file}")
    first, second = map(json.loads, file.read_text().splitlines())
    assert first == {"task": task, "result": result}
    assert second["task"] == task | {"seed": 1} and 0 <= second["result"]["test"] <= 1
    accuracies = f"0.0125 {second['result']['test']:.4f}"
    row = rf"\| {photos} \| head_only \|.+± .+\| {accuracies} \| none, head_only, 2 epochs \|"
    assert re.search(row, said)


@pytest.mark.skipif(not find_spec("fastai"), reason="fastai is not installed")
def test_fastai_is_measured_on_the_same_splits(photos: Path) -> None:
    said = measure_accuracy(photos, "--seeds=1", "--fastai")
    assert re.search(r"\| fastai \|.+\| fine_tune\(5\) \|", said)


def test_without_fastai_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import accuracy

    monkeypatch.setattr(sys, "argv", ["accuracy", "--fastai", "--fastai-python=false"])
    with pytest.raises(SystemExit):
        accuracy.main()
    assert "--fastai: false cannot import fastai. Run `pip install" in capsys.readouterr().err


def benchmark(name: str, *arguments: str) -> str:
    """Run a benchmark to its end, and return what it printed."""
    return run_command(ROOT, sys.executable, "-m", f"benchmarks.{name}", *arguments)
