"""Networks of torchvision and timm come with their weights, or the message says how to get them."""

from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torchvision import models

from thawline.errors import CheckpointError, ParameterError
from thawline.networks.building import build_network, head_name
from thawline.networks.libraries import find_weights
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
    bundled = find_weights(ModelOptions())
    assert bundled.file is not None and bundled.file.is_file()
    assert "efficientnet-lite0" in bundled.source
    for backbone in ("timm/gcvit_tiny", "resnet18"):
        weights = find_weights(ModelOptions(backbone=backbone))
        assert weights.source.startswith("https://")
        name = weights.source.rsplit("/", 1)[-1]
        assert weights.file == tmp_path / "hub" / "checkpoints" / name
    by_hub = find_weights(ModelOptions(backbone="timm/resnet34"))
    assert by_hub.source == "https://huggingface.co/timm/resnet34.a1_in1k" and not by_hub.file
    with pytest.raises(ParameterError, match="no pretrained weights for 'cs3darknet_s'"):
        find_weights(ModelOptions(backbone="timm/cs3darknet_s"))
    with pytest.raises(ParameterError, match=r"timm has no network 'resnet34\.a9'"):
        find_weights(ModelOptions(backbone="timm/resnet34.a9"))


def test_inception_keeps_no_second_head() -> None:
    arguments = {"init_weights": False}
    network = build(backbone="inception_v3", weights="none", size=96, backbone_kwargs=arguments)
    assert network.train()(torch.randn(2, 3, 96, 96)).shape == (2, 3)


@pytest.mark.parametrize("changed", [{}, {"transform_input": False}])
def test_inception_from_a_file_expects_the_input_of_its_pretrained_weights(
    tmp_path: Path, changed: dict[str, bool]
) -> None:
    torch.save(models.googlenet(init_weights=False).state_dict(), tmp_path / "best.pth")
    file = str(tmp_path / "best.pth")
    network = build(backbone="googlenet", weights=file, backbone_kwargs=changed)
    assert network.transform_input is changed.get("transform_input", True)


def test_vit_of_torchvision_gets_its_head() -> None:
    network = build(backbone="vit_b_32", weights="none", size=224)
    assert head_name(network) == "heads.head"


def test_rows_of_imagenet_classes_are_kept_from_named_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = models.ResNet18_Weights.DEFAULT
    trained = models.resnet18()
    monkeypatch.setattr(weights.__class__, "get_state_dict", lambda *_, **__: trained.state_dict())
    names = ("bee", "pangolin")  # ImageNet has no pangolins
    network, report = build_network(ModelOptions(backbone="resnet18"), 2, 64, 0, class_names=names)
    bee = weights.meta["categories"].index("bee")
    assert report.kept_rows == ("bee",) and report.replaced == ("fc.weight", "fc.bias")
    assert torch.equal(network.fc.weight[0], trained.fc.weight[bee])
    assert torch.equal(network.fc.bias[0], trained.fc.bias[bee])


@pytest.mark.parametrize("weights", ["default", "IMAGENET1K_V1"])
def test_a_failed_download_says_which_file_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(CheckpointError) as caught:
        build(backbone="resnet18", weights=weights)
    for words in ("resnet18-f37072fd.pth", str(tmp_path), "timm/tf_efficientnet_lite0"):
        assert words in str(caught.value)
