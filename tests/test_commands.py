"""The console command answers in a table, and in one line where it cannot."""

from pathlib import Path

import torch
from click.testing import CliRunner

from networks import SmallNet
from thawline.commands import main


def test_inspect_shows_what_a_checkpoint_holds(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor for name, tensor in SmallNet().state_dict().items()}
    torch.save({"state_dict": state, "epoch": 3, "classes": ["[b]\x1b[2J"]}, tmp_path / "a.pth")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "a.pth")])
    assert done.exit_code == 0
    for words in ("state dict under state_dict", "module.linear.weight", "epoch: 3", "[b]?[2J"):
        assert words in done.output
    assert "\x1b" not in done.output


def test_inspect_names_what_a_pickle_would_import(tmp_path: Path) -> None:
    torch.save(SmallNet(), tmp_path / "whole.pt")
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "whole.pt")])
    assert "a whole pickled network" in done.output and "networks.SmallNet" in done.output


def test_inspect_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "absent.pth")])
    assert done.exit_code == 1
    assert done.output.startswith("Error: there is no file") and done.output.count("\n") == 1
