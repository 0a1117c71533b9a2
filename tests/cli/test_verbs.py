"""The command thawline and the function finetune work in a folder with nothing but photographs."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

import thawline
from conftest import ROOT, environment, run_command
from thawline.api import name_parameters, packaged_configuration
from thawline.cli.main import main
from thawline.hooks.configuration import read_configuration
from thawline.options import flatten, validate_parameters
from thawline.options.listing import list_parameters

pytestmark = pytest.mark.xdist_group("verbs")  # one training for all

SETTINGS = {
    "model.backbone": "resnet18", "model.weights": "none", "transforms.size": 32,
    "strategy": "head_only", "training.epochs": 2, "training.device": "cpu",
}  # fmt: skip
THAWLINE = Path(sys.executable).with_name("thawline")
MAX_LINES = 40
LATER = {"torch", "torchvision", "timm", "captum", "cleanlab", "matplotlib.figure", "scipy.stats"}


def run(folder: Path, *arguments: str) -> str:
    """Return what the command prints in a folder, at 80 columns."""
    return run_command(folder, THAWLINE, *arguments, env=environment() | {"COLUMNS": "80"})


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a folder with photographs and the results of a training, and what that printed."""
    folder = tmp_path_factory.mktemp("empty")
    (folder / "photos").symlink_to(photos)
    settings = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]
    return folder, run(folder, "finetune", "photos", *settings)


def test_a_training_ends_with_its_answer_in_less_than_a_page(trained: tuple[Path, str]) -> None:
    folder, said = trained
    lines = [line for line in said.splitlines() if line.strip()]
    assert len(lines) <= MAX_LINES
    answer = said[said.index("╭─ finetune") :]
    words = ("Accuracy", "95 % interval", "Strategy", "Champion", "thawline predict", "mlflow ui")
    assert all(word in answer for word in words)
    assert "thawline-runs/data/08_reporting/latest.html" in answer
    assert sorted(path.name for path in folder.iterdir()) == ["photos", "thawline-runs"]
    (log,) = (folder / "thawline-runs/data/logs").iterdir()
    assert "Completed node: train_model" in log.read_text() and "Completed" not in said


def test_a_trained_model_predicts_an_image_and_a_folder(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    images = sorted((folder / "photos").rglob("*.jpg")) or sorted((folder / "photos").rglob("*.*"))
    one = run(folder, "predict", str(images[0]))
    assert images[0].name in one and "Predicted  1 files by models:/photos" in one
    assert f"Predicted  {len(images)} files" in run(folder, "predict", "photos")


def test_runs_are_listed_with_accuracy_and_champion(trained: tuple[Path, str]) -> None:
    folder, _ = trained
    said = run(folder, "runs")
    assert "head_only" in said and "champion" in said and "photos" in said


@pytest.fixture
def opened(trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Work in the folder of the training; return the list of what commands open."""
    opened: list[str] = []
    monkeypatch.setattr("click.launch", opened.append)
    monkeypatch.chdir(trained[0])
    return opened


def test_all_runs_are_shown_as_a_page(opened: list[str]) -> None:
    done = CliRunner().invoke(main, ["runs", "--html"])
    assert done.exit_code == 0, done.output
    page = Path(opened[0]).read_text(encoding="utf-8")
    assert "· head_only · resnet18, has" in page
    assert "1 champion" in page and "arrayminus" in page


def test_a_report_is_opened(opened: list[str]) -> None:
    done = CliRunner().invoke(main, ["report"])
    assert done.exit_code == 0 and opened[0].endswith("thawline-runs/data/08_reporting/latest.html")
    assert Path(opened[0]).is_file()


def test_without_a_report_its_command_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["report"])
    assert done.exit_code == 1 and "Run thawline finetune first" in done.output
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
def test_finetune_in_python_does_the_same(photos: Path, tmp_path: Path) -> None:
    script = (
        "import json, sys\nfrom thawline import finetune\n"
        "data, parameters = sys.argv[1], json.loads(sys.argv[2])\n"
        "model = finetune(data, strategy='linear_probe', parameters=parameters)\n"
        "found = model.predict(data)\n"
        "print(json.dumps([sorted(set(found['label'])), str(model.folder)]))\n"
    )
    given = {k: v for k, v in SETTINGS.items() if k not in ("strategy", "training.epochs")}
    said = run_command(tmp_path, sys.executable, "-c", script, photos, json.dumps(given))
    labels, folder = json.loads(said.splitlines()[-1])
    assert set(labels) <= {"flower", "temple"} and labels
    assert Path(folder, "classifier.json").is_file()


def test_a_folder_of_photographs_is_the_data_where_there_is_no_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert name_parameters(None) == {"dataset.root": str(tmp_path.resolve())}
    monkeypatch.chdir(ROOT)
    assert name_parameters(None) == {}
    assert name_parameters("sklearn:digits") == {"dataset.root": "sklearn:digits"}


def test_nothing_heavy_is_imported_before_a_node_needs_it(photos: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom thawline.api import run_pipeline\n"
        "run_pipeline('data_preparation', {'dataset.root': sys.argv[1]})\n"
        "import thawline.pipeline_registry as registry\n"
        "registry.register_pipelines()\n"
        f"print(sorted({LATER!r} & set(sys.modules)))\n"
    )
    said = run_command(tmp_path, sys.executable, "-c", script, photos)
    assert said.splitlines()[-1] == "[]"


def test_corrections_are_looked_for_where_the_command_is_given(
    photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "corrections.csv").write_text("path,action\nflower/00.jpg,drop\n")
    script = (
        "from thawline.api import run_pipeline\n"
        f"given = {{'dataset.root': {str(photos)!r}, 'dataset.corrections': 'corrections.csv'}}\n"
        "run_pipeline('data_preparation', given)\n"
    )
    run_command(tmp_path, sys.executable, "-c", script, timeout=120)
    (file,) = tmp_path.rglob("applied_corrections.csv/*/*.csv")
    assert "applied" in file.read_text()


def test_every_parameter_is_listed_with_its_type() -> None:
    rows = {row.name: row for row in list_parameters(packaged_configuration() / "base")}
    parameters = validate_parameters(read_configuration(ROOT, "base")["parameters"])
    defaults = dict(flatten(parameters.model_dump()))
    whole = ("strategies.", "sweep.space")
    missing = {name for name in defaults if not name.startswith(whole)} - rows.keys()
    assert not missing
    assert rows["training.epochs"].type.startswith("int")
    assert rows["augmentation.policy"].type == "basic | trivial | rand"
    assert "learning rate" in CliRunner().invoke(main, ["params", "warmup"]).output


def test_a_value_may_be_a_list_and_a_setting_needs_a_name() -> None:
    done = CliRunner().invoke(main, ["finetune", "--set", "epochs"])
    assert done.exit_code != 0 and "epochs is not NAME=VALUE" in done.output
    done = CliRunner().invoke(main, ["finetune", "--set", "transforms.mean=[0.5, 0.5]"])
    assert done.exit_code != 0 and "transforms.mean.2: Field required" in done.output
    assert CliRunner().invoke(main, ["--version"]).output.strip().endswith(thawline.__version__)


@pytest.mark.slow
def test_a_watched_folder_is_trained_on_again_when_it_has_changed(
    photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(photos, tmp_path / "photos")
    settings = ("--set", "transforms.size=32", "--set", "training.num_workers=0")
    process = subprocess.Popen(
        [str(THAWLINE), "watch", "photos", *settings], cwd=tmp_path, env=environment(),
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    try:
        said = []
        for classes in (2, 3):
            for line in process.stdout:
                said.append(line)
                if line.startswith("Watching"):
                    break
            assert f"({classes} classes: " in "".join(said)
            if classes == 3:
                break
            shutil.copytree(photos / "flower", tmp_path / "photos" / "garden")
            for path in (tmp_path / "photos" / "garden").iterdir():
                Image.open(path).rotate(90).save(path)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["params", "zzzz"], "No parameter has 'zzzz' in its name or meaning"),
        (["runs"], "There is no run yet. Run thawline finetune first"),
        (["review"], "There is no classifier yet. Run thawline finetune first"),
        (["drift", "."], "There is no classifier yet. Run thawline finetune first"),
        (["compare", "--set", "explain.images=[2024]", "--set", "dataset.fractions=[1]"],
         "explain.images, dataset.fractions: a list cannot replace"),
        (["finetune", "--set", "dataset.fractions=[0.7, 0.15, 0.15]"],
         "dataset.fractions: a list cannot replace a group of parameters"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 1 and done.output.startswith("Error: ") and said in done.output
    assert not any((tmp_path / "thawline-runs").glob("*"))


def test_missing_corrections_are_looked_for_where_they_were_named(
    trained: tuple[Path, str],
) -> None:
    folder, _ = trained
    command = (THAWLINE, "finetune", "photos", "--set", "dataset.corrections=no.csv")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and f"{folder}/no.csv does not exist" in done.stderr


def test_a_file_that_may_not_be_written_is_named_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "thawline-runs"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    done = CliRunner().invoke(main, ["finetune"])
    assert done.exit_code == 1 and "thawline-runs cannot be written or read" in done.output


def test_the_command_of_kedro_that_is_printed_takes_several_strategies() -> None:
    done = CliRunner().invoke(main, ["compare", "--strategy", "full", "--strategy", "nosuch"])
    assert "$ kedro run --pipeline=compare '--params=compare.strategies=full nosuch'" in done.output
