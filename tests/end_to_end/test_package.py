"""The wheel that `kedro package` makes runs the pipelines by name, without the project.

What `kedro package` itself needs to build a wheel is fetched from a package index.
"""

import hashlib
import os
import shutil
import subprocess
import sysconfig
import tarfile
import venv
from pathlib import Path
from typing import NamedTuple

import mlflow
import pytest
from sklearn.datasets import load_digits

from conftest import QUICK, ROOT, report, run_command, run_kedro

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("package")]


class Package(NamedTuple):
    python: Path
    site_packages: Path
    configuration: Path  # the archive


@pytest.fixture(scope="module")
def package(module_project: Path) -> Package:
    """Return an environment with the wheel; all other packages are those of the tests."""
    project = module_project
    for name in ("README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    run_kedro(project, "package")
    environment = project.parent / "environment"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    (wheel,) = (project / "dist").glob("*.whl")
    command = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run(command, check=True)
    (site_packages,) = environment.glob("lib/*/site-packages")
    # A folder in a .pth file is searched last, and .pth files in it, of editable installs, are not.
    (site_packages / "of_the_tests.pth").write_text(sysconfig.get_path("purelib"))
    configuration = shutil.move(project / "dist" / "conf-thawline.tar.gz", project.parent)
    shutil.rmtree(project)  # nothing of it may be needed
    return Package(python, site_packages, Path(configuration))


def run(folder: Path, *command: object) -> str:
    """Run a command of the environment in a folder; return what it printed."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return run_command(folder, *command, env=env, timeout=600)


def digests(folder: Path) -> dict[Path, str]:
    """Return the content of all files but compiled ones."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def runs(folder: Path) -> list[mlflow.entities.Run]:
    """Return the runs that are recorded in a folder, the first first."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments, order_by=["attributes.start_time"]))


def test_the_command_of_the_wheel_trains_on_a_folder_of_photographs(
    package: Package, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").symlink_to(photos)
    settings = [part for setting in QUICK.split(",") for part in ("--set", setting)]
    command = (package.python.with_name("thawline"), "finetune", "photos", *settings)
    assert "test images are right" in run(tmp_path, *command, "--strategy=linear_probe")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "thawline-runs"]


def test_finetune_runs_in_an_empty_directory_with_a_configuration_from_elsewhere(
    package: Package, tmp_path: Path
) -> None:
    with tarfile.open(package.configuration) as archive:
        archive.extractall(tmp_path / "elsewhere", filter="data")
    empty = tmp_path / "empty"
    empty.mkdir()
    before = digests(package.site_packages)
    assert package.site_packages / "thawline" / "__main__.py" in before
    conf = f"--conf-source={tmp_path}/elsewhere/conf"
    run(empty, package.python, "-m", "thawline", "--pipeline=finetune", conf, f"--params={QUICK}")
    (tracked,) = runs(empty)
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["dataset.root"] == "sklearn:digits"
    assert tracked.data.tags["kedro_command"].startswith("python -m thawline --pipeline=finetune")
    accuracy = report(empty, "metrics.json")["test_accuracy"]
    assert tracked.data.metrics["test/accuracy"] == accuracy > 0.3  # of 10
    assert {path.name for path in empty.iterdir()} == {"data", "mlartifacts", "mlflow.db"}
    assert len(list((empty / "data/01_raw/digits").glob("*/*"))) == len(load_digits().target)
    assert digests(package.site_packages) == before


def test_two_tasks_of_a_scheduler_leave_what_one_run_leaves(
    package: Package, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    options = (f"--conf-source={package.configuration}", f"--params=dataset.root=photos,{QUICK}")
    thawline = (package.python, "-m", "thawline")
    run(tmp_path, *thawline, "--pipeline=data_preparation", *options)
    run(tmp_path, *thawline, "--from-nodes=build_transforms", *options)
    prepared, trained = runs(tmp_path)
    assert [run.info.status for run in (prepared, trained)] == ["FINISHED", "FINISHED"]
    first = report(tmp_path, "metrics.json")
    assert trained.data.metrics["test/accuracy"] == first["test_accuracy"]
    assert trained.data.tags["registered_version"] == "1"
    # The splits are those of the first task, and belong to the classifier of the second.
    one, other = (run.inputs.dataset_inputs[0].dataset for run in (prepared, trained))
    assert (one.name, one.digest, one.schema, one.profile) == (
        other.name, other.digest, other.schema, other.profile
    )  # fmt: skip
    run(tmp_path, *thawline, "--pipeline=evaluate", *options)
    assert report(tmp_path, "metrics.json") == first
