"""A network of one's own is imported and called, or the message says what it lacks."""

import pytest
import torch
from torch import nn

from thawline.errors import ParameterError
from thawline.networks.building import build_network, head_name
from thawline.options import ModelOptions
from thawline.thaw.freezing import find_stages


def build(classes: int = 3, seed: int = 0, size: int = 64, **options: object) -> nn.Module:
    return build_network(ModelOptions(**options), classes, size, seed)[0]


@pytest.mark.parametrize("backbone", ["CifarResNet20", "ChannelwiseResNet"])
def test_a_head_of_ones_own_is_kept_and_gets_the_number_of_classes(backbone: str) -> None:
    own = {"backbone": f"helpers.networks:{backbone}", "weights": "none", "head": "builtin"}
    network = build(classes=4, backbone_kwargs={"stem_stride": 4}, **own)
    assert head_name(network) == "linear" and network.conv1.stride == (4, 4)
    assert type(network.linear).__name__ in ("Linear", "ChannelwiseLinear")
    assert network.linear.weight.shape == (4, 64)
    assert list(find_stages(network)) == ["stem", "layer1", "layer2", "layer3", "head"]
    images = torch.randn(2, 3, 32, 32)
    whole = network.eval()(images)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(images), whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"backbone": "helpers.networks:SmallNet"}, r"model\.head: builtin .*num_classes"),
        (
            {"backbone": "helpers.networks:CifarResNet20", "backbone_kwargs": {"num_classes": 7}},
            r"model\.backbone_kwargs\.num_classes: 7 ",
        ),
        (
            {"backbone": "helpers.networks:CifarResNet20", "log_probabilities": True},
            r"model\.log_probabilities: true",
        ),
        ({"backbone": "helpers.networks:LostHead"}, r"head_name of LostHead is 'classify'"),
    ],
)
def test_a_head_of_ones_own_needs_a_network_that_builds_it(options: dict, said: str) -> None:
    with pytest.raises(ParameterError, match=said):
        build(weights="none", head="builtin", **options)


def test_a_head_of_ones_own_that_is_to_be_replaced_is_refused() -> None:
    arguments = {"num_classes": 5}
    with pytest.raises(ParameterError, match=r"linear layers only.*model\.head=builtin"):
        build(
            backbone="helpers.networks:ChannelwiseResNet", weights="none", backbone_kwargs=arguments
        )


def test_arguments_reach_the_constructor() -> None:
    network = build(
        backbone="helpers.networks:SmallNet", weights="none", backbone_kwargs={"width": 4}
    )
    assert network.linear.in_features == 8
