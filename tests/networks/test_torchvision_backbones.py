"""torchvision's classifiers come with their weights, or the message says how to get them."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from thawline.errors import CheckpointError
from thawline.networks.building import build_network, head_name
from thawline.options import ModelOptions


def build(classes: int = 3, seed: int = 0, size: int = 64, **options: object) -> nn.Module:
    return build_network(ModelOptions(**options), classes, size, seed)[0]


def test_inception_keeps_no_second_head() -> None:
    arguments = {"init_weights": False}
    network = build(backbone="inception_v3", weights="none", size=96, backbone_kwargs=arguments)
    assert network.train()(torch.randn(2, 3, 96, 96)).shape == (2, 3)


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


def test_a_failed_download_says_which_file_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(CheckpointError) as caught:
        build(backbone="resnet18")
    for words in ("resnet18-f37072fd.pth", str(tmp_path), "timm/tf_efficientnet_lite0"):
        assert words in str(caught.value)
