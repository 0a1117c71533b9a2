"""The commands of README and of the page for people from other tools, each typed as it stands."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import timm
import torch

from conftest import ROOT, environment, run_command

pytestmark = pytest.mark.slow

SMALL = """
transforms: { size: 32 }
model: { weights: none }
training: { epochs: 1, num_workers: 0, device: cpu }
auto: { budget_minutes: 0 }
sweep: { trials: 2 }
compare: { num_seeds: 1, strategies: [head_only, linear_probe] }
"""
BLOCK = re.compile(r"^```bash\n(.*?)^```", re.S | re.M)
SPAN = re.compile(r"`([^`]+)`")
VERB = "thawline finetune photos"
# Installing has a test of its own (the quick start); a server does not end; its version is made up.
NOT_TYPED = ("pip", "thawline serve", "kedro run --pipeline=evaluate --load-versions")


def commands_of_readme() -> list[str]:
    """Return the lines of its blocks."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = "".join(BLOCK.findall(text)).splitlines()
    commands = [line.partition(" #")[0].strip() for line in lines]
    return [command for command in commands if command and not command.startswith(NOT_TYPED)]


def commands_of_other_tools_page() -> list[str]:
    """Return what its last column says, options as those of `thawline finetune`."""
    text = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
    cells = [line.split("|")[-2] for line in text.splitlines() if line.startswith("|")]
    spans = [span for cell in cells for span in SPAN.findall(cell)]
    options = [f"{VERB} {span}" for span in spans if span.startswith("--")]
    return options + [span for span in spans if span.startswith(("thawline", "kedro"))]


@pytest.fixture(scope="module")
def folder(module_project: Path, photos: Path) -> Path:
    """Return a project with photographs, a file of weights and a champion."""
    folder = module_project
    (folder / "conf" / "local" / "parameters.yml").write_text(SMALL, encoding="utf-8")
    for name in ("photos", "path/to/folder"):
        shutil.copytree(photos, folder / name)
    shutil.copy(next(photos.rglob("*.*")), folder / "photo.jpg")
    type_in(VERB, folder)
    return folder


COMMANDS = [*dict.fromkeys(commands_of_readme() + commands_of_other_tools_page())]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_does_what_it_says(command: str, folder: Path) -> None:
    backbone = "resnet50" if "resnet50" in command else "tf_efficientnet_lite0"
    torch.save(timm.create_model(backbone).state_dict(), folder / "best.pth")
    said = type_in(command, folder)
    assert said.strip() or command == "thawline report"


def type_in(command: str, folder: Path) -> str:
    """Return what a command prints."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = environment() | {"PATH": path, "BROWSER": "true"}  # which opens nothing
    return run_command(folder, "bash", "-ec", command, env=env)
