"""A file of weights is loaded in full or refused; nothing in it is executed."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from networks import SmallNet
from thawline.checkpoints import load_backbone, read_state_dict
from thawline.errors import CheckpointError


@pytest.fixture
def source() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return SmallNet().state_dict()


@pytest.mark.parametrize("layout", ["plain", "state_dict", "model", "module.", "safetensors"])
def test_every_layout_gives_the_same_tensors(
    tmp_path: Path, source: dict[str, torch.Tensor], layout: str
) -> None:
    path = tmp_path / "weights.pth"
    if layout == "safetensors":
        path = tmp_path / "weights.safetensors"
        save_file(source, path)
    elif layout == "module.":
        torch.save({f"module.{name}": t for name, t in source.items()}, path)
    elif layout == "plain":
        torch.save(source, path)
    else:
        torch.save({layout: source, "epoch": 3}, path)
    read = read_state_dict(path)
    assert read.keys() == source.keys()
    assert all(torch.equal(read[name], source[name]) for name in source)
    network = SmallNet()
    report = load_backbone(network, "linear", path)
    assert set(report.replaced) == {"linear.weight", "linear.bias"}
    for name in report.loaded:
        assert torch.equal(network.state_dict()[name], source[name])


class Creates:
    """A pickle of this creates a file when it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_is_refused_before_it_runs(tmp_path: Path) -> None:
    torch.save({"weight": Creates(tmp_path / "created")}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="cannot be read as a state dict"):
        read_state_dict(tmp_path / "evil.pth")
    assert not (tmp_path / "created").exists()


@pytest.mark.parametrize(
    "name", ["absent.pth", "text.pth", "text.safetensors", "list.pth", "cut.pth"]
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.pth").write_text("weights")
    (tmp_path / "text.safetensors").write_text("weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"w": torch.zeros(100)}, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"model\.weights: .*" + name):
        read_state_dict(tmp_path / name)


def test_weights_of_another_network_are_refused_with_what_is_missing(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Linear(2, 2)).state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"missing \(.*unexpected \(0\.weight"):
        load_backbone(SmallNet(), "linear", tmp_path / "other.pth")
    torch.save(SmallNet(width=4).state_dict(), tmp_path / "narrow.pth")
    with pytest.raises(CheckpointError, match="of another shape"):
        load_backbone(SmallNet(), "linear", tmp_path / "narrow.pth")
