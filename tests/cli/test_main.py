"""The command `thawline` shows what it is asked for, or says in one message what is wrong."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from kedro.framework.cli.utils import find_run_command
from torchvision.models import resnet18

from helpers.networks import SmallNet
from thawline import cli
from thawline.cli.main import main
from thawline.data.loading import ImageView
from thawline.thaw.cache import ActivationCache


def thawline(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_stages_shows_parameters_outputs_and_shares_of_each_stage() -> None:
    result = thawline("stages", "resnet18")
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in row.split("│")[1:-1]] for row in result.output.splitlines()]
    stages, parameters, outputs, shares = zip(*filter(None, rows), strict=True)
    assert stages == ("stem", "layer1", "layer2", "layer3", "layer4", "head")
    counts = [int(text.replace(",", "")) for text in parameters]
    assert sum(counts) == sum(p.numel() for p in resnet18().parameters())
    assert outputs == ("64×56×56", "64×56×56", "128×28×28", "256×14×14", "512×7×7", "1000")
    assert sum(float(text.rstrip("%")) for text in shares) == pytest.approx(100, abs=0.3)
    assert "`trainable: [layer4, head]` or `trainable: {last: 2}`" in result.output


def test_stages_takes_an_own_network_and_a_size() -> None:
    result = thawline("stages", "helpers.networks:SmallNet", "--size", "32")
    assert re.search(r"layer2 .* 1,200 .* 16×4×4 ", result.output)
    result = thawline("stages", "helpers.networks:ChannelwiseResNet", "--size", "32", "--own-head")
    assert re.search(r"head .* 64,\d{3} .* 1000 ", result.output), result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["resnet81"], "no classifier 'resnet81'; did you mean 'resnet18'?"),
        (["timm/resnet81"], "no network 'resnet81'; did you mean 'resnet18'?"),
        (["nosuch:Network"], "'nosuch:Network' cannot be imported"),
        (["vit_b_16", "--size=100"], "cannot process images of 100 px"),
    ],
)
def test_a_backbone_that_cannot_be_built_is_an_error_of_one_message(
    arguments: list[str], said: str
) -> None:
    result = thawline("stages", *arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: model.backbone: ")
    assert said in result.output


def test_help_comes_at_once_as_no_heavy_library_is_imported() -> None:
    assert "BACKBONE" in thawline("stages", "--help").output
    code = "import sys, thawline.cli.main; print({'torch', 'pandas', 'kedro'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_inspect_shows_what_a_checkpoint_holds(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in SmallNet().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "classes": ["[b]\x1b[2J"]}, tmp_path / "a.pth")
    done = thawline("inspect", str(tmp_path / "a.pth"))
    assert done.exit_code == 0
    for words in ("state dict under state_dict", "module.linear.weight", "epoch: 3", r"[b]\e[2J"):
        assert words in done.output
    assert "\x1b" not in done.output


def test_inspect_names_what_a_pickle_would_import(tmp_path: Path) -> None:
    torch.save(SmallNet(), tmp_path / "whole.pt")
    done = thawline("inspect", str(tmp_path / "whole.pt"))
    assert "a whole pickled network" in done.output and "networks.SmallNet" in done.output


def test_inspect_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    done = thawline("inspect", str(tmp_path / "absent.pth"))
    assert done.exit_code == 1
    assert done.output.startswith("Error: ") and done.output.count("\n") == 1
    assert "does not exist" in done.output


@pytest.fixture
def below_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of a project, in its usual environment, with lines that are wide enough."""
    monkeypatch.chdir(project / "conf" / "base")
    monkeypatch.delenv("KEDRO_ENV", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return project


def test_activations_are_shown_and_removed_from_any_folder_of_a_project(
    below_project: Path,
) -> None:
    folder = below_project / "data" / "04_feature" / "activations"
    partition = ActivationCache(folder, max_gb=1).partition({"holds": "activations"})
    partition.add([ImageView("", "0" * 64).key], (torch.zeros(1, 250_000),))
    partition.flush()
    done = thawline("activations")
    assert done.exit_code == 0, done.output
    assert re.search(r"│ activations │ 1 +│ 1.0 ", done.output)
    assert f"1.0 MB of at most 10 GB in {folder}" in done.output
    assert "1.0 MB of at most 10 GB" in thawline("activations", "--clear").output
    assert not folder.exists()
    assert "--empty was renamed to --clear" in thawline("activations", "--empty").output


def test_activations_outside_a_project_are_those_of_its_folder_of_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = thawline("activations")
    assert done.exit_code == 0, done.output
    folder = tmp_path / "thawline-runs" / "data" / "04_feature" / "activations"
    assert f"0.0 MB of at most 10 GB in {folder}" in done.output
    assert not any(tmp_path.iterdir())


def test_a_folder_with_a_configuration_serves_where_the_project_is_a_package(
    below_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (below_project / "pyproject.toml").unlink()
    assert "thawline-runs" in thawline("activations").output
    monkeypatch.chdir(below_project)
    assert f"in {below_project / 'data'}" in thawline("activations").output


def test_doctor_finds_nothing_wrong_where_nothing_is_and_changes_nothing(
    below_project: Path, photos: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in below_project.rglob("*")}
    done = thawline("doctor", f"--params=dataset.root={photos},transforms.size=64")
    assert {path: path.stat().st_mtime_ns for path in below_project.rglob("*")} == before
    assert done.exit_code == 0, done.output
    states = dict(reversed(line.split()[:2]) for line in done.output.splitlines())
    names = ("versions", "configuration", "device", "weights", "data", "tracking")
    assert all(states[name] == "ok" for name in names), done.output
    assert "40 images of 2 classes" in done.output


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--params=trian.lr=3", "trian: unknown; did you mean 'training'?"),
        ("--params=dataset.root=nowhere", "dataset.root: 'nowhere' does not exist"),
        ("--params=model.weights=absent.pth", "does not exist"),
        ("--params=model.backbone=resnet81", "did you mean 'resnet18'?"),
        ("--env=nosuch", "nosuch"),
    ],
)
def test_doctor_ends_with_status_1_and_names_what_a_run_would_stumble_over(
    option: str, said: str, below_project: Path
) -> None:
    done = thawline("doctor", option)
    assert done.exit_code == 1 and said in done.output, done.output
    assert any(line.startswith("problem ") for line in done.output.splitlines())


def test_doctor_works_outside_a_project_and_finds_data_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path
) -> None:
    (tmp_path / "here").symlink_to(photos)
    monkeypatch.chdir(tmp_path)
    done = thawline("doctor", "--params=dataset.root=here")
    assert done.exit_code == 0, done.output
    assert "40 images of 2 classes" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert "problem  configuration" in thawline("doctor", "--env=nosuch").output


def test_every_help_page_ends_with_examples() -> None:
    for page in ([], *([name] for name in main.commands)):
        help_page = thawline(*page, "--help").output
        assert "Examples:\n    thawline" in help_page


def test_kedro_finds_the_commands_of_the_project_and_of_its_package() -> None:
    assert {"run", "activations", "log-run"} <= {*cli.cli.commands}
    assert find_run_command("thawline") is cli.cli.commands["run"]
