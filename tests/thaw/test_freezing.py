"""What is frozen stays as it is to the bit; what is trainable is all in the optimizer."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from golden.records import default_parameters
from helpers.networks import SmallNet
from thawline.errors import ParameterError, TrainingError
from thawline.networks.building import build_network, build_on_meta_device
from thawline.options import ModelOptions, Phase, Strategy
from thawline.thaw.freezing import (
    check_frozen,
    find_unknown_names,
    freeze_layers,
    freeze_report,
    frozen_tensors,
    hash_tensors,
    parameter_groups,
)


def build(backbone: str, **model: object) -> nn.Module:
    options = ModelOptions(backbone=backbone, weights="none", **model)
    return build_network(options, 3, 64, seed=0)[0]


def phase(trainable: object, **options: object) -> Phase:
    return Phase(**{"trainable": trainable, "epochs": 1, "lr": 0.1, **options})


RESNET = build("resnet18")
RESNET_STAGES = ["stem", "layer1", "layer2", "layer3", "layer4", "head"]
TOLD_STAGES = "(stages: stem, layer1, layer2, layer3, layer4, head)"


@pytest.mark.parametrize(
    ("trainable", "stages"),
    [
        ("all", RESNET_STAGES),
        ({"last": 1}, ["head"]),
        ({"last": 3}, ["layer3", "layer4", "head"]),
        (["layer2", "head"], ["layer2", "head"]),
        (["layer4.*"], ["layer4"]),
        (["layer4.1"], ["layer4"]),
    ],
)
def test_a_phase_trains_exactly_the_stages_it_names(trainable: object, stages: list[str]) -> None:
    freeze_layers(RESNET, phase(trainable))
    assert [group["name"] for group in parameter_groups(RESNET, phase(trainable))] == stages[::-1]


def test_a_glob_trains_single_layers_and_leaves_their_batch_norm_frozen() -> None:
    freeze_layers(RESNET, phase(["layer4.*.conv?.*", "head"]))
    trainable = {name for name, p in RESNET.named_parameters() if p.requires_grad}
    convolutions = {f"layer4.{block}.conv{i}.weight" for block in (0, 1) for i in (1, 2)}
    assert trainable == convolutions | {"fc.weight", "fc.bias"}
    assert not RESNET.layer4[0].bn1.training


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", "timm/convnext_atto", "timm/vit_tiny_patch16_224", "helpers.networks:SmallNet"],
)
def test_norms_are_trained_by_what_they_are_whatever_their_names(backbone: str) -> None:
    network = build(backbone, backbone_kwargs={"img_size": 64} if "vit" in backbone else {})
    freeze_layers(network, phase(["norms"]))
    kinds = (nn.BatchNorm2d, nn.LayerNorm)  # timm's are subclasses
    for name, module in network.named_modules():
        for parameter in module.parameters(recurse=False):
            assert parameter.requires_grad == isinstance(module, kinds), name


def test_biases_are_trained_with_those_of_attention() -> None:
    network = build("helpers.networks:ResidualNet")
    freeze_layers(network, phase(default_parameters().strategies["bias_only"].phases[0].trainable))
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    biases = {name for name, _ in network.named_parameters() if name.endswith("bias")}
    assert trained == biases | {"linear.weight"} and "mix.in_proj_bias" in trained


@given(
    st.one_of(
        st.just("all"),
        st.builds(lambda n: {"last": n}, st.integers(1, 9)),
        st.lists(st.sampled_from([*RESNET_STAGES, "layer?.1.bn2.*", "*.bias"]), min_size=1),
    ),
    st.floats(0.01, 1),
)
@settings(max_examples=50)
def test_the_optimizer_holds_exactly_the_trainable_parameters(
    trainable: object, decay: float
) -> None:
    chosen = phase(trainable, lr_decay=decay)
    freeze_layers(RESNET, chosen)
    groups = parameter_groups(RESNET, chosen)
    held = [id(p) for group in groups for p in group["params"]]
    assert len(held) == len(set(held))
    assert set(held) == {id(p) for p in RESNET.parameters() if p.requires_grad}


@pytest.mark.parametrize("trainable", [{"last": 1}, {"last": 2}, ["layer2"]])
def test_train_mode_passes_leave_everything_frozen_as_it_was(trainable: object) -> None:
    network = build("helpers.networks:SmallNet")
    chosen = phase(trainable)
    freeze_layers(network, chosen)
    frozen = {name: tensor.clone() for name, tensor in frozen_tensors(network).items()}
    assert {"input_norm.running_mean", "layer1.1.running_var", "conv1.weight"} <= frozen.keys()
    before = hash_tensors(frozen)
    optimizer = torch.optim.SGD(parameter_groups(network, chosen), weight_decay=0.1, momentum=0.9)
    for _ in range(3):
        network(torch.randn(4, 3, 64, 64) + 3).square().sum().backward()
        optimizer.step()
    for name, tensor in frozen_tensors(network).items():
        assert torch.equal(tensor, frozen[name]), name
    hashes = {"sha256_before": before, "sha256_after": before}
    told = {"phase": 1, "frozen_tensors": len(frozen), **hashes}
    assert check_frozen(network, before, 1) == told


def test_the_statistics_of_trained_batch_norm_move_unless_told_not_to() -> None:
    for mode, moves in (("train", True), ("eval", False)):
        network = build("helpers.networks:SmallNet")
        freeze_layers(network, phase("all", batch_norm=mode))
        before = network.layer1[1].running_mean.clone()
        network(torch.randn(4, 3, 64, 64))
        assert torch.equal(network.layer1[1].running_mean, before) != moves


def test_dropout_drops_only_above_what_is_frozen() -> None:
    network = build("helpers.networks:SmallNet")
    freeze_layers(network, phase({"last": 2}))
    assert not network.layer1[3].training
    assert network.layer2[3].training


def test_a_changed_frozen_weight_breaks_the_contract() -> None:
    network = build("helpers.networks:SmallNet")
    freeze_layers(network, phase({"last": 1}))
    before = hash_tensors(frozen_tensors(network))
    with torch.no_grad():
        network.conv1.bias[0] += 1e-6
    after = hash_tensors(frozen_tensors(network))
    said = (
        "Freeze contract broken in phase 2: a frozen parameter or buffer changed (SHA-256"
        f" {before} before, {after} after). The network's forward modifies its own weights or"
        " statistics."
    )
    with pytest.raises(TrainingError, match=re.escape(said)):
        check_frozen(network, before, 2)


def test_buffers_are_frozen_where_their_own_module_is_in_evaluation_mode() -> None:
    network = SmallNet().eval()
    network.layer1[1].train()
    buffers = {name for name, _ in network.named_buffers()}
    moving = {name for name in buffers if name.startswith("layer1.1.")}
    assert moving and set(frozen_tensors(network)) == buffers - moving


def test_a_hash_tells_names_shapes_types_and_bytes_but_not_order_and_layout() -> None:
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    same = {"b": torch.ones(1), "a": tensor}
    hashed = hash_tensors({"a": tensor, "b": torch.ones(1)})
    assert hash_tensors(same) == hashed and re.fullmatch("[0-9a-f]{64}", hashed)
    assert hash_tensors({**same, "a": tensor.t().contiguous().t()}) == hashed
    others = [
        {"c": tensor, "b": torch.ones(1)},
        {**same, "a": tensor.reshape(3, 2)},
        {**same, "a": tensor.view(torch.int32)},
        {**same, "a": tensor.nextafter(torch.tensor(9.0))},
    ]
    assert len({hashed, *map(hash_tensors, others)}) == 5


def test_learning_rates_fall_from_stage_to_stage_unless_given() -> None:
    chosen = phase("all", lr=0.1, lr_decay=0.5, stage_lr={"layer3": 0.7})
    freeze_layers(RESNET, chosen)
    rates = {group["name"]: group["lr"] for group in parameter_groups(RESNET, chosen)}
    expected = {"head": 0.1, "layer4": 0.05, "layer3": 0.7}
    expected |= {"layer2": 0.0125, "layer1": 0.00625, "stem": 0.003125}
    assert rates == pytest.approx(expected)


def test_the_report_has_a_row_for_each_phase_and_stage() -> None:
    network = SmallNet()
    first, second = phase({"last": 1}), phase("all", batch_norm="eval", lr_decay=0.5)
    report = freeze_report(network, [first, second])
    assert report["phase"].tolist() == [1] * 4 + [2] * 4
    assert list(report["stage"]) == ["stem", "layer1", "layer2", "head"] * 2
    assert report["parameters"].sum() == 2 * sum(p.numel() for p in network.parameters())
    assert report["trainable"].tolist() == [0, 0, 0, 170, *report["parameters"].tolist()[4:]]
    assert report["lr"].tolist() == [0, 0, 0, 0.1, 0.0125, 0.025, 0.05, 0.1]
    assert report["batch_norm"].tolist() == ["", "eval", "eval", ""] * 2
    assert [p.requires_grad for p in network.parameters()].count(True) == 2  # as phase 1 needs it


def test_the_report_names_the_mode_of_each_stages_batch_norm() -> None:
    report = freeze_report(RESNET, [phase(["layer3", "layer4.1.bn2.*", "head"])])
    assert report["batch_norm"].tolist() == ["eval", "eval", "eval", "train", "mixed", ""]


@pytest.mark.parametrize(
    ("wrong", "said", "meant"),
    [
        (phase(["layer44"]), "trainable: 'layer44' matches no stage or parameter", "layer4"),
        (phase("all", stage_lr={"heda": 1}), "stage_lr: 'heda' matches no stage", "head"),
    ],
)
def test_a_name_that_matches_nothing_is_refused(wrong: Phase, said: str, meant: str) -> None:
    said = f"strategies: {said} of this network; did you mean '{meant}'? {TOLD_STAGES}."
    with pytest.raises(ParameterError, match=re.escape(said)):
        freeze_report(RESNET, [wrong])


def test_names_that_a_backbone_lacks_are_found_in_its_outline_with_the_nearest() -> None:
    right = phase(["head", "layer4.*.conv?", "layer3.0"])
    wrong = phase(["layer44"], stage_lr={"laye4": 1, "head": 1})
    mine, whole = Strategy(phases=(right, wrong)), Strategy(phases=(phase("all"), right))
    strategies = {"mine": mine, "all": whole}
    network = build_on_meta_device(ModelOptions(backbone="resnet18"))
    assert network is not None and next(network.parameters()).is_meta
    meant = f"of this network; did you mean 'layer4'? {TOLD_STAGES}"
    assert find_unknown_names(network, strategies) == [
        "strategies.mine.phases.1.trainable: 'layer44' matches no stage or parameter " + meant,
        "strategies.mine.phases.1.stage_lr: 'laye4' matches no stage " + meant,
    ]
    assert build_on_meta_device(ModelOptions(backbone="helpers.networks:SmallNet")) is None
