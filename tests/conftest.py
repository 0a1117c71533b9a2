"""Small real things that the tests share."""

import os

# Two test processes share the cores; more threads would only get in each other's way. This is read
# when PyTorch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

import functools
import importlib.util
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from helpers.browser import CHROMIUM, SECONDS
from helpers.servers import Postgres
from thawline.data.splitting import split_dataset
from thawline.options import DatasetOptions
from thawline.thaw.image_set import ImageSet, image_set

# A busy machine is no failure of a property.
hypothesis.settings.register_profile("thawline", deadline=None)
hypothesis.settings.load_profile("thawline")
# For mutants: a failure ends the test, nobody reads the smallest example.
hypothesis.settings.register_profile(
    "mutants",
    deadline=None,
    database=None,
    max_examples=20,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
)

ROOT = Path(__file__).parents[1]
NOTEBOOKS = ROOT / "notebooks"
HYMENOPTERA = ROOT.parent / "shared" / "data" / "hymenoptera"
PRELOADED = ("thawline.sweep.study", "thawline.networks.building")  # in processes that tests start

os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let `pytest tests/fuzz` say for how long."""
    minutes = "minutes for all of tests/fuzz together, one after the other"
    parser.addoption("--fuzz-minutes", type=float, default=1, help=minutes)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that take minutes an hour; pyproject.toml bounds all others."""
    for item in items:
        if item.get_closest_marker("slow") or item.path.parent.name == "fuzz":
            item.add_marker(pytest.mark.timeout(3600))


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder per class: pieces of the two photographs that scikit-learn brings."""
    root = tmp_path_factory.mktemp("photos")
    for name, pixels in zip(("temple", "flower"), load_sample_images().images, strict=True):
        (root / name).mkdir()
        photograph = Image.fromarray(pixels)
        for idx in range(20):
            left, top = 100 * (idx % 5), 100 * (idx // 5)
            piece = photograph.crop((left, top, left + 120, top + 100))
            piece.save(root / name / f"{idx:02d}.jpg")
    return root


def divide_photos(photos: Path, root: Path, **numbers: range) -> Path:
    """Copy the photographs with some numbers into a folder for each split; return its parent."""
    for split, chosen in numbers.items():
        for label in ("flower", "temple"):
            (root / split / label).mkdir(parents=True)
            for idx in chosen:
                shutil.copy(photos / label / f"{idx:02d}.jpg", root / split / label)
    return root


@pytest.fixture(scope="session")
def splits(photos: Path) -> pd.DataFrame:
    """Return the table of splits of the photographs."""
    rows = [(p.as_posix(), p.parent.name) for p in sorted(photos.glob("*/*.jpg"))]
    manifest = pd.DataFrame(rows, columns=["path", "label"])
    return split_dataset(manifest, DatasetOptions().fractions, seed=0)


def train_set_of(labels: torch.Tensor) -> ImageSet:
    """Return images for training that have these labels; there are no files."""
    splits = pd.DataFrame({"class_index": labels.numpy(), "split": "train"})
    splits["path"] = [f"{idx}.jpg" for idx in splits.index]
    splits["sha256"] = [f"{idx:064x}" for idx in splits.index]
    return image_set(splits, "train", torch.device("cpu"))


@pytest.fixture(autouse=True)
def no_tracking_uri_from_another_test() -> Iterator[None]:
    """Forget what `mlflow.set_tracking_uri` has left in the environment."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session")
def hymenoptera() -> Path:
    """Return the folder of photographs beside the project, or skip where it is absent."""
    if not HYMENOPTERA.is_dir():
        pytest.skip(f"the photographs of {HYMENOPTERA} are not here")
    return HYMENOPTERA


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return a running server, or skip where PostgreSQL is not installed."""
    pytest.importorskip("psycopg", reason="pip install 'thawline[postgres]'")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    if not programs:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    server = Postgres(programs[-1].parent)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a fresh copy of the project, without data and runs."""
    return copy_project(tmp_path / "project")


@pytest.fixture(scope="module")
def module_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a fresh copy of the project for the fixture of a module that runs it."""
    return copy_project(tmp_path_factory.mktemp("module") / "project")


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """Return a project in which `kedro run --pipeline=finetune` has been run to its end."""
    project = copy_project(tmp_path_factory.mktemp("finished") / "project")
    options = ("--pipeline=finetune", f"--params=dataset.root={photos},{QUICK}")
    process = start_kedro(project, "run", *options)  # all of it, as typed; others are forked
    said = "".join(process.communicate(timeout=300))
    assert process.returncode == 0 and "leaked" not in said, said
    return project


@pytest.fixture
def finished_copy(finished_project: Path, tmp_path: Path) -> Path:
    """Return a copy of the finished project, to be changed."""
    return Path(shutil.copytree(finished_project, tmp_path / "project"))


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """Return a page of a browser without a window."""
    from playwright.sync_api import sync_playwright

    arguments = ["--no-sandbox", "--enable-unsafe-swiftshader", "--disable-background-networking"]
    with sync_playwright() as starter:
        browser = starter.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = browser.new_page(viewport={"width": 1600, "height": 1200})
        page.set_default_timeout(1000 * SECONDS)
        yield page
        browser.close()


QUICK = "training.epochs=2,training.num_workers=0,training.precision=fp32,transforms.size=64"


def copy_project(target: Path) -> Path:
    """Copy what git would, except tests and documents, and what only costs time to make anew."""
    for name in ("conf", "src"):
        ignored = shutil.ignore_patterns("local", "best", "*.egg-info")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    parameters = target / "conf" / "base" / "parameters.yml"  # of many runs auto would be costly
    text = parameters.read_text(encoding="utf-8")
    parameters.write_text(text.replace("strategy: auto ", "strategy: head_only "), encoding="utf-8")
    (target / "conf" / "local").mkdir()
    shutil.copy(empty_tracking_store(), target / "mlflow.db")
    for name in ("pyproject.toml", ".telemetry"):
        shutil.copy(ROOT / name, target / name)
    return target


def child_process(target: Callable[..., Any], *arguments: Any) -> Any:
    """Return a process, still to be started, that may be killed at any moment.

    It is forked from a process that has only imported things. One forked from this process would
    wait for locks and threads that it has not.
    """
    context = multiprocessing.get_context("forkserver")
    for name in PRELOADED:  # the fork server itself keeps silent about a module that is not there
        assert importlib.util.find_spec(name), name
    context.set_forkserver_preload([*PRELOADED])
    return context.Process(target=target, args=arguments)


@functools.cache
def empty_tracking_store() -> Path:
    """Return an SQLite file with MLflow's tables and no run."""
    import mlflow  # not above: what it imports must see the number of threads set there

    file = Path(tempfile.mkdtemp()) / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


def kedro(
    project: Path, *arguments: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the `kedro` command as a user would and return what it printed."""
    server = forked_kedro()
    assert server.stdin and server.stdout
    with tempfile.TemporaryDirectory() as folder:
        files = {name: f"{folder}/{name}" for name in ("stdout", "stderr")}
        place = {"cwd": str(cwd or project), "env": environment()}
        server.stdin.write(f"{json.dumps({'arguments': arguments, **place, **files})}\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        stdout, stderr = (Path(file).read_text(encoding="utf-8") for file in files.values())
    return subprocess.CompletedProcess(["kedro", *arguments], status, stdout, stderr)


def run_kedro(project: Path, *arguments: str, cwd: Path | None = None) -> str:
    """Run the `kedro` command, which must end well, and return its standard output."""
    done = kedro(project, *arguments, cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def latest(project: Path, entry: str) -> Path:
    """Return the newest version of a versioned catalog entry, as of `06_models/classifier`."""
    return max((project / "data" / entry).iterdir()) / Path(entry).name


def report(project: Path, name: str) -> Any:
    """Return what the newest version of a file of reports holds: a table, JSON or text."""
    file = latest(project, f"08_reporting/{name}")
    if file.suffix == ".csv":
        return pd.read_csv(file)
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else text


def tracked(uri: str) -> tuple[Any, list[Any]]:
    """Return a client of a tracking store, and its runs in the experiment, the last first."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    return client, client.search_runs([client.get_experiment_by_name("thawline").experiment_id])


def log(project: Path) -> str:
    """Return what the last run of a project has logged."""
    return max((project / "data" / "logs").iterdir()).read_text(encoding="utf-8")


@functools.cache
def forked_kedro() -> subprocess.Popen[str]:
    """Return a process that forks one for each command: PyTorch and MLflow are imported once."""
    command = [sys.executable, str(Path(__file__).parent / "helpers" / "forked_kedro.py")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment(), stdin=pipe, stdout=pipe, text=True)


def environment() -> dict[str, str]:
    """Return the environment of a command: wide lines, and no store that MLflow knows of here."""
    own = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    return {**own, "COLUMNS": "200", "PYTHONWARNINGS": "ignore"}


def start_kedro(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """Start the `kedro` command with variables beside ours, and with pipes for what it prints."""
    command = [str(Path(sys.executable).with_name("kedro")), *arguments]
    env, pipe = {**environment(), **variables}, subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=env, stdout=pipe, stderr=pipe, text=True)


def run_command(
    folder: Path, *command: object, env: dict[str, str] | None = None, timeout: float | None = None
) -> str:
    """Run a command in a folder, which must end well, and return its standard output."""
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=env or environment(), timeout=timeout,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


def run_notebook(name: str, project: Path) -> None:
    """Run a copy of a notebook of ours in a project, from top to bottom."""
    folder = project / "notebooks"
    folder.mkdir()
    copy = shutil.copy(NOTEBOOKS / f"{name}.ipynb", folder)
    options = ("--nbmake", "-o", "addopts=", "-p", "no:cacheprovider")
    try:
        run_command(folder, sys.executable, "-m", "pytest", *options, copy)
    finally:
        shutil.rmtree(folder)
