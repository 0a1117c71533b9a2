"""timm's networks come with their weights, and read no file unchecked."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from thawline.errors import ParameterError
from thawline.networks.building import build_network
from thawline.networks.timm_backbones import find_weights
from thawline.options import ModelOptions


def build(classes: int = 3, seed: int = 0, size: int = 64, **options: object) -> nn.Module:
    return build_network(ModelOptions(**options), classes, size, seed)[0]


def test_timm_reads_no_file_unchecked() -> None:
    with pytest.raises(ParameterError, match=r"model\.backbone_kwargs\.checkpoint_path"):
        build(backbone="timm/resnet18", backbone_kwargs={"checkpoint_path": "a.pth"})


def test_the_default_backbone_brings_its_imagenet_weights() -> None:
    network = build(classes=2)
    assert len(network.state_dict()) == 296
    fresh = timm.create_model("tf_efficientnet_lite0")
    assert not torch.equal(network.blocks[3][0].conv_pw.weight, fresh.blocks[3][0].conv_pw.weight)
    assert network.bn1.running_var.std() > 0  # trained statistics, not ones


def test_weights_are_found_on_disk_or_named_by_their_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file, source = find_weights(ModelOptions())
    assert file is not None and file.is_file() and "efficientnet-lite0" in source
    by_url = ModelOptions(backbone="timm/gcvit_tiny")
    file, source = find_weights(by_url)
    assert file is None and source.startswith("https://")
    cached = tmp_path / "hub" / "checkpoints" / source.rsplit("/", 1)[-1]
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert find_weights(by_url) == (cached, source)
    by_hub = find_weights(ModelOptions(backbone="timm/resnet34"))
    assert by_hub[1] == "https://huggingface.co/timm/resnet34.a1_in1k"
    with pytest.raises(ParameterError, match="no pretrained weights for 'cs3darknet_s'"):
        find_weights(ModelOptions(backbone="timm/cs3darknet_s"))
