"""Architecture, weights and head fit together, or the message says what would."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from thawline.errors import ParameterError
from thawline.networks.building import build_network, head_name
from thawline.options import ModelOptions
from thawline.thaw.freezing import find_stages

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def build(
    backbone: str, classes: int = 3, seed: int = 0, size: int = 64, **model: object
) -> nn.Module:
    options = ModelOptions(backbone=backbone, weights="none", **model)
    return build_network(options, classes, size, seed)[0]


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("resnet18", "fc"),
        ("mobilenet_v3_small", "classifier.3"),
        ("squeezenet1_1", "classifier"),
        ("densenet121", "classifier"),
        ("shufflenet_v2_x0_5", "fc"),
        ("timm/resnet18", "fc"),
        ("timm/test_vit", "head"),
        ("timm/test_convnext", "head.fc"),
        ("helpers.networks:SmallNet", "linear"),
    ],
)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_new_head_finds_its_place_and_width(backbone: str, head: str, kind: str) -> None:
    size = 160 if "vit" in backbone else 64
    network = build(backbone, head=kind, size=size)
    assert head_name(network) == head
    assert network.eval()(torch.zeros(1, 3, size, size)).shape == (1, 3)


@pytest.mark.parametrize("backbone", ["vit_b_32", "timm/test_vit"])
def test_images_of_a_size_that_the_network_cannot_take_are_refused(backbone: str) -> None:
    for head in ("linear", "all_stages"):
        with pytest.raises(ParameterError, match=r"cannot process images of 100 px"):
            build(backbone, head=head, size=100)


def test_the_mlp_head_is_linear_relu_dropout_linear_with_its_sizes() -> None:
    head = build("resnet18", head="mlp", head_hidden=32, head_dropout=0.1).fc
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].in_features, head[0].out_features, head[3].in_features) == (512, 32, 32)
    assert head[2].p == 0.1


@pytest.mark.parametrize(
    ("dropout", "layers"), [(None, None), (0.0, None), (0.25, [nn.Dropout, nn.Linear])]
)
def test_a_linear_head_has_dropout_on_demand(dropout: float | None, layers: list | None) -> None:
    network = build("helpers.networks:SmallNet", head_dropout=dropout)
    if layers is None:
        assert isinstance(network.linear, nn.Linear)
        return
    assert [type(layer) for layer in network.linear] == layers and network.linear[0].p == 0.25
    assert sorted(find_stages(network)["head"].parameters) == ["linear.1.bias", "linear.1.weight"]


def test_the_mlp_has_its_dropout_by_default() -> None:
    assert build("helpers.networks:SmallNet", head="mlp").linear[2].p == 0.4


def test_the_seed_decides_the_random_weights_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build("resnet18", seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.fc.weight, again.fc.weight)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.fc.weight, other.fc.weight)


def test_logits_by_default_and_log_probabilities_on_demand() -> None:
    plain = build("resnet18").eval()(IMAGES)
    log = build("resnet18", log_probabilities=True).eval()(IMAGES)
    torch.testing.assert_close(log, plain.log_softmax(dim=1))
    torch.testing.assert_close(log.exp().sum(dim=1), torch.ones(2))


def test_a_network_that_ends_in_a_softmax_is_refused() -> None:
    with pytest.raises(ParameterError, match="ends in a softmax"):
        build("helpers.networks:SoftmaxNet")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "resnet51"}, "model.backbone: .*'resnet51'; did you mean 'resnet50'"),
        ({"backbone": "timm/resnet18_x"}, "model.backbone: timm has no network 'resnet18_x'"),
        ({"backbone": "nowhere:Net"}, "model.backbone: 'nowhere:Net' cannot be imported"),
        ({"backbone": "pathlib:PurePath"}, "expected an nn.Module"),
        ({"backbone": "resnet18", "weights": "V9"}, "model.weights: 'V9' .*IMAGENET1K_V1"),
        ({"backbone": "timm/resnet18", "weights": "V9"}, "model.weights: 'V9' .*timm/resnet18.TAG"),
        ({"backbone": "helpers.networks:SmallNet", "weights": "V9"}, "model.weights: 'V9'"),
    ],
)
def test_a_wrong_name_is_refused_with_the_right_ones(options: dict, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        build_network(ModelOptions(**options), 3, 64, seed=0)


def test_a_resnet50_file_is_loaded_tensor_by_tensor_and_its_head_replaced(tmp_path: Path) -> None:
    torch.manual_seed(3)
    source = models.resnet50(num_classes=1000).state_dict()
    torch.save(source, tmp_path / "mine.pth")
    options = ModelOptions(backbone="resnet50", weights=str(tmp_path / "mine.pth"))
    network, report = build_network(options, 2, 64, seed=0)
    loaded = network.state_dict()
    backbone = [name for name in source if not name.startswith("fc.")]
    assert set(report.loaded) == set(backbone)
    assert report.replaced == ("fc.weight", "fc.bias")
    for name in backbone:
        assert torch.equal(loaded[name], source[name]), name
    assert loaded["fc.weight"].shape == (2, 2048)
    assert "318 backbone tensors loaded" in str(report) and "fc.weight, fc.bias" in str(report)


@pytest.mark.parametrize(
    ("backbone", "arguments", "said"),
    [
        ("helpers.networks:SmallNet", {"depth": 4}, r".*\(TypeError: .*depth"),
        ("json:loads", {"s": "{"}, r"cannot be built with {'s': '{'} \(JSONDecodeErr"),
        ("resnet18", {"replace_stride_with_dilation": [1]}, r".*\(ValueError"),
        ("timm/resnet18", {"depth": 4}, r".*depth"),
    ],
)
def test_whatever_a_constructor_raises_names_its_arguments(
    backbone: str, arguments: dict, said: str
) -> None:
    with pytest.raises(ParameterError, match=rf"model\.backbone_kwargs: {backbone} {said}"):
        build(backbone, backbone_kwargs=arguments)


@pytest.mark.parametrize("backbone", ["CifarResNet20", "ChannelwiseResNet"])
def test_a_head_of_ones_own_is_kept_and_gets_the_number_of_classes(backbone: str) -> None:
    stride = {"stem_stride": 4}
    network = build(f"helpers.networks:{backbone}", 4, head="builtin", backbone_kwargs=stride)
    assert head_name(network) == "linear" and network.conv1.stride == (4, 4)
    assert type(network.linear).__name__ in ("Linear", "ChannelwiseLinear")
    assert network.linear.weight.shape == (4, 64)
    assert list(find_stages(network)) == ["stem", "layer1", "layer2", "layer3", "head"]
    images = torch.randn(2, 3, 32, 32)
    whole = network.eval()(images)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(images), whole)


@pytest.mark.parametrize(
    ("backbone", "options", "said"),
    [
        ("SmallNet", {}, r"model\.head: builtin .*num_classes"),
        (
            "CifarResNet20",
            {"backbone_kwargs": {"num_classes": 7}},
            r"model\.backbone_kwargs\.num_classes: 7 ",
        ),
        ("CifarResNet20", {"log_probabilities": True}, r"model\.log_probabilities: true"),
        ("LostHead", {}, r"head_name of LostHead is 'classify'"),
    ],
)
def test_a_head_of_ones_own_needs_a_network_that_builds_it(
    backbone: str, options: dict, said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        build(f"helpers.networks:{backbone}", head="builtin", **options)


def test_a_head_of_ones_own_that_is_to_be_replaced_is_refused() -> None:
    with pytest.raises(ParameterError, match=r"linear layers only.*model\.head=builtin"):
        build("helpers.networks:ChannelwiseResNet", backbone_kwargs={"num_classes": 5})


def test_arguments_reach_the_constructor() -> None:
    assert build("helpers.networks:SmallNet", backbone_kwargs={"width": 4}).linear.in_features == 8
