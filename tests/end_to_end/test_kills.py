"""A run that is killed at any moment, and repeated with resume, ends as if nothing had happened."""

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID as PARENT
from PIL import Image
from safetensors.torch import load_file

from conftest import QUICK, copy_project, start_kedro, tracked

pytestmark = pytest.mark.slow

LONGEST = 1000  # seconds of a run
KILLS = int(os.environ.get("KILLS", "50"))  # of each pipeline
VARIANTS = {
    "finetune": "strategy=lp_ft",
    "compare": "compare.strategies=head_only lp_ft,compare.num_seeds=2,seed=3",
}
RESULTS = (
    "splits.csv", "predictions.csv", "comparison_predictions.csv", "metrics.json",
    "model.safetensors",
)  # fmt: skip
READERS: dict[str, Callable[[Path], Any]] = {
    ".csv": pd.read_csv,
    ".html": lambda file: file.read_text().rindex("</html>"),
    ".jpg": lambda file: Image.open(file).load(),
    ".json": lambda file: json.loads(file.read_text()),
    ".parquet": pd.read_parquet,
    ".png": lambda file: Image.open(file).load(),
    ".pt": lambda file: torch.load(file, weights_only=True),
    ".safetensors": load_file,
}


@pytest.mark.parametrize("pipeline", VARIANTS)
def test_kills_at_random_moments_change_nothing(
    photos: Path, tmp_path: Path, pipeline: str
) -> None:
    params = f"--params=dataset.root={photos},{QUICK},training.resume=true,{VARIANTS[pipeline]}"
    command = ("run", f"--pipeline={pipeline}", params)
    project, start = copy_project(tmp_path / "undisturbed"), time.monotonic()
    assert end_or_kill(project, command, LONGEST)
    seconds, expected = time.monotonic() - start, results(project)
    project, rng, kills, ends = copy_project(tmp_path / "killed"), random.Random(0), 0, 0
    while kills < KILLS:
        shutil.rmtree(project / "data", ignore_errors=True)
        start = time.monotonic()
        while not end_or_kill(project, command, rng.uniform(0, 1.3 * seconds)):
            kills, start = kills + 1, time.monotonic()
            print(f"{pipeline}: {kills} kills, {ends} ends", flush=True)
        seconds = time.monotonic() - start  # a busy machine becomes a quiet one
        ends += 1
        check_readable(project / "data")
        found = results(project)
        assert found.keys() == expected.keys()
        differing = [name for name in expected if not same(found[name], expected[name])]
        assert not differing


def end_or_kill(project: Path, command: tuple[str, ...], seconds: float) -> bool:
    """Return whether a command came to its end before it was killed."""
    process = start_kedro(project, *command)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return False
    assert process.returncode == 0, output + errors
    return True


def results(project: Path) -> dict[str, Any]:
    """Return of the latest run what has to be the same again: weights, tables and metrics."""
    version = max((project / "data/05_model_input/splits.csv").iterdir()).name
    client, runs = tracked(f"sqlite:///{project}/mlflow.db")
    assert {run.info.status for run in runs} <= {"FINISHED", "KILLED"}
    found: dict[str, Any] = {"metrics": tracked_metrics(client, runs)}
    for file in (project / "data").rglob(f"{version}/**/*"):
        name = file.as_posix().replace(version, "").removeprefix(project.as_posix())
        if file.name in ("history.csv", "comparison_histories.csv"):
            found[name] = pd.read_csv(file).drop(columns=["seconds", "images_per_second"])
        elif file.name in RESULTS:
            found[name] = READERS[file.suffix](file)
    return found


def tracked_metrics(client: MlflowClient, runs: list[Run]) -> dict[tuple[str, str], Any]:
    """Return the points of every metric of the latest run and of those below it."""
    latest = next(run for run in runs if PARENT not in run.data.tags)
    family = [latest, *(run for run in runs if run.data.tags.get(PARENT) == latest.info.run_id)]
    return {
        (str(run.info.run_name), key): [
            (point.step, point.value) for point in client.get_metric_history(run.info.run_id, key)
        ]
        for run in family
        for key in run.data.metrics
        if not key.startswith("time/")
    }


def same(one: Any, other: Any) -> bool:
    """Return whether two results are equal, tensors to the bit."""
    if isinstance(one, pd.DataFrame):
        return one.equals(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and one.keys() == other.keys():
        return all(same(one[key], other[key]) for key in one)
    return one == other


def check_readable(folder: Path) -> None:
    """Open every file that is said to be finished as what its name says it is."""
    for file in folder.rglob("*"):
        finished = file.is_file() and ".unfinished." not in file.as_posix()
        if finished and file.suffix in READERS:
            READERS[file.suffix](file)
