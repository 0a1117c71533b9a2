"""Stages run from input to head and hold every parameter once; the table describes them."""

import pytest
import torch
from torch import nn

from helpers.networks import ResidualNet, SmallNet
from thawline.networks.building import build_network
from thawline.networks.stages import find_stages, stage_table
from thawline.options import ModelOptions

RESNET_STAGES = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{idx}" for idx in range(count)]


@pytest.mark.parametrize(
    ("backbone", "stages"),
    [
        ("resnet18", RESNET_STAGES),
        ("timm/resnet18", RESNET_STAGES),
        ("timm/regnetx_002", ["stem", "s1", "s2", "s3", "s4", "head"]),
        ("timm/tf_efficientnet_lite0", ["stem", *numbered("blocks.", 7), "head"]),
        ("timm/mobilenetv3_small_050", ["stem", *numbered("blocks.", 6), "head"]),
        ("mobilenet_v2", ["stem", *(f"features.{i}" for i in (2, 4, 7, 14)), "head"]),
        ("alexnet", ["stem", "features.3", "features.6", "classifier", "head"]),
        ("googlenet", ["stem", "conv2", "inception3a", "inception4a", "inception5a", "head"]),
        ("helpers.networks:SmallNet", ["stem", "layer1", "layer2", "head"]),
        ("timm/test_vit", ["stem", "patch_embed", *numbered("blocks.", 6), "head"]),
        ("timm/test_convnext", ["stem", *numbered("stages.", 4), "head"]),
        ("convnext_tiny", [*numbered("features.", 8), "head"]),
        ("timm/twins_pcpvt_small", ["patch_embeds", *numbered("blocks.", 4), "pos_block", "head"]),
    ],
)
def test_stages_run_from_input_to_head_and_hold_every_parameter_once(
    backbone: str, stages: list[str]
) -> None:
    size = 160 if backbone == "timm/test_vit" else 64
    network, _ = build_network(ModelOptions(backbone=backbone, weights="none"), 3, size, seed=0)
    found = find_stages(network)
    assert list(found) == stages
    held = [name for stage in found.values() for name in stage.parameters]
    assert sorted(held) == sorted(name for name, _ in network.named_parameters())


def test_a_parameter_of_two_stages_belongs_to_the_first() -> None:
    network = SmallNet()
    network.layer2.append(network.layer1[0])
    stages = find_stages(network)
    assert "layer1.0.weight" in stages["layer1"].parameters
    assert not [name for name in stages["layer2"].parameters if name.startswith("layer2.4")]


def test_pooling_before_the_classifier_belongs_to_the_head() -> None:
    assert find_stages(SmallNet())["layer2"].modules == ["layer2"]
    assert find_stages(SmallNet())["head"].modules == ["pool", "linear"]


def test_the_table_has_parameters_output_and_share_of_computation_of_each_stage() -> None:
    table = stage_table(SmallNet(), 32).set_index("stage")
    parameters = {"stem": 224, "layer1": 600, "layer2": 1200, "head": 170}
    assert table["parameters"].to_dict() == parameters
    assert list(table["output"]) == ["8×16×16", "8×8×8", "16×4×4", "10"]
    multiply_adds = [27 * 8 * 16**2, 72 * 8 * 8**2, 72 * 16 * 4**2, 16 * 10]
    total = sum(multiply_adds)
    assert list(table["compute"]) == pytest.approx([count / total for count in multiply_adds])


def test_the_table_counts_attention() -> None:
    table = stage_table(ResidualNet(), 64).set_index("stage")
    tokens, width, pixels = 257, 8, 256
    attention = 4 * tokens * width**2 + 2 * tokens**2 * width
    others = pixels * (27 * width + 2 * 9 * width**2) + 2 * width * 10
    assert table.loc["mix", "compute"] == pytest.approx(attention / (attention + others))
    assert table.loc["mix", "output"] == "257×8"


def test_the_table_counts_what_lists_of_modules_compute() -> None:
    options = ModelOptions(backbone="timm/hrnet_w18_small", weights="none")
    table = stage_table(build_network(options, 3, 64, seed=0)[0], 64)
    assert (table["compute"] > 0).all()
    assert table["compute"].sum() == pytest.approx(1)
    assert table.set_index("stage").loc["stage2", "output"] == "16×16×16, 32×8×8"


def test_the_table_leaves_the_network_as_it_is() -> None:
    network = SmallNet()
    network.conv1.requires_grad_(False)
    network.layer1.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    stage_table(network, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not network.conv1.weight.requires_grad
    assert not any(module._forward_hooks for module in network.modules())


def test_a_network_of_single_layers_without_strides_is_a_stem_and_a_head() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert list(find_stages(network)) == ["stem", "head"]
