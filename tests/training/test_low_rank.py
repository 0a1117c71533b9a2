"""Low-rank updates leave an ordinary network, and change nothing but what they may."""

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, linear

from golden.records import default_parameters
from helpers.training import HEAD, network_of, options, prepared
from thawline.networks.building import build_network
from thawline.options import ModelOptions, Phase
from thawline.thaw.freezing import freeze_layers, freeze_report, low_rank_sizes
from thawline.training.loop import train
from thawline.training.optimizer import LowRankUpdates, make_optimizer


def lora(stages: int = 9, rank: int = 2, alpha: float = 8, epochs: int = 2) -> Phase:
    chosen = {"stages": stages, "rank": rank, "alpha": alpha}
    return Phase(trainable={"lora": chosen}, epochs=epochs, lr=0.01)


class OneLayer(nn.Module):
    """A layer to update between a stem and a head, over images or over their pixels as tokens."""

    def __init__(self, layer: nn.Module, outputs: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.block = nn.Sequential(layer, nn.GroupNorm(1, outputs))
        self.linear = nn.Linear(outputs, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = x.flatten(2).mT.flatten(0, 1) if isinstance(self.block[0], nn.Linear) else x
        x = self.block(x)
        return self.linear(x.mean((2, 3)) if x.ndim == 4 else x)


layers = st.one_of(
    st.builds(
        lambda outputs, kernel, groups: nn.Conv2d(12, 12 * outputs, kernel, groups=groups),
        st.integers(1, 3),
        st.sampled_from([1, 3, 5]),
        st.sampled_from([1, 3, 12]),  # 12: depthwise
    ),
    st.builds(nn.Linear, st.just(12), st.integers(8, 24)),
)


@given(layers, st.integers(1, 4), st.floats(0.5, 16), st.integers(0, 9))
@settings(max_examples=60)
def test_weights_hold_the_sum_and_factors_get_the_gradients_of_an_unmerged_update(
    layer: nn.Module, rank: int, alpha: float, seed: int
) -> None:
    network = OneLayer(layer, len(layer.weight)).to(memory_format=torch.channels_last)
    start = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    phase = lora(rank=rank, alpha=alpha)
    freeze_layers(network, phase)
    updates = LowRankUpdates(network, phase, seed)
    factors = updates.replace([layer.weight])
    if len(factors) == 1:  # no smaller than the weight, which is trained in its place
        assert rank * (len(layer.weight) + layer.weight[0].numel()) >= layer.weight.numel()
        return
    down, up = factors
    updates.merge()
    assert all(torch.equal(tensor, start[name]) for name, tensor in network.state_dict().items())

    nn.init.normal_(up)
    updates.merge()
    inputs = torch.randn(3, 12, 8, 8)
    scale, before = alpha / rank, start["block.0.weight"]
    if isinstance(layer, nn.Linear):
        tokens = inputs.flatten(2).mT
        unmerged = linear(tokens, before, layer.bias) + scale * linear(linear(tokens, down), up)
        merged = layer(tokens)
    else:
        kernels = down.view(rank, *before.shape[1:])
        unmerged = conv2d(inputs, before, layer.bias, groups=layer.groups)
        if layer.groups == 1:  # as in PEFT: a k×k convolution, then a 1×1 one
            unmerged += scale * conv2d(conv2d(inputs, kernels), up[:, :, None, None])
        else:
            change = (up @ down).view(before.shape)
            unmerged += scale * conv2d(inputs, change, groups=layer.groups)
        merged = layer(inputs)
    assert (merged - unmerged).abs().max() <= 1e-5 * unmerged.abs().max()

    images = torch.randn(4, 3, 8, 8)
    network(images).square().sum().backward()
    updates.split_gradients()
    assert layer.weight.grad is None
    summed = before + scale * (up @ down).view(before.shape)
    loss = functional_call(network, {"block.0.weight": summed}, images).square().sum()
    for wanted, factor in zip(torch.autograd.grad(loss, (down, up)), factors, strict=True):
        torch.testing.assert_close(factor.grad, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "backbone",
    [
        pytest.param("resnet18", marks=pytest.mark.slow),
        "timm/vit_tiny_patch16_224",
        "timm/tf_efficientnet_lite0",
        "helpers.networks:ResidualNet",
    ],
)
def test_a_trained_network_has_its_names_and_differs_by_low_rank_matrices(
    splits: pd.DataFrame, backbone: str
) -> None:
    size = {"backbone_kwargs": {"img_size": 32}} if "vit" in backbone else {}
    network = network_of(backbone, **size)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    phase = lora(stages=4)
    result = train(prepared(splits, network), [phase])
    assert [*result.best] == [*result.last] == [*before]
    own = {id(p): name for name, p in network.named_parameters()}
    updated = {own[id(weight)] for weight in low_rank_sizes(network, phase)}
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert len(updated) > 2
    for name, tensor in result.last.items():
        change = (tensor - before[name]).double()
        if name in updated:
            values = torch.linalg.svdvals(change.flatten(1))
            assert values[0] > 0 and values[2] <= 1e-4 * values[0], name
        elif name not in trained:  # in full: the head, and a weight smaller than its update
            assert not change.any(), name
    record = result.freeze_contract[0]
    assert record["sha256_before"] == record["sha256_after"]
    network_of(backbone, **size).load_state_dict(result.best)


def test_attention_of_pytorch_is_updated_too() -> None:
    network = network_of("helpers.networks:ResidualNet")
    freeze_layers(network, lora(rank=1))
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {"mix.in_proj_weight", "mix.out_proj.weight", "block2.0.weight"} < trained
    assert not {"mix.in_proj_bias", "block2.0.bias", "scale", "token"} & trained


def test_stages_are_counted_as_in_last_and_the_head_is_trained_in_full() -> None:
    network = network_of("resnet18")
    freeze_layers(network, lora(stages=2))
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert all(name.startswith(("layer4.", "fc.")) for name in trained)
    assert {"fc.weight", "fc.bias"} < trained
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    report = freeze_report(network, [lora(stages=2)]).set_index("stage")["trainable"]
    shapes = [(512, 256 * 9), *[(512, 512 * 9)] * 3, (512, 256)]
    assert report["layer4"] == sum(2 * (rows + columns) for rows, columns in shapes)
    assert report["head"] == 512 * 2 + 2 and report["layer3"] == 0


def test_the_optimizer_holds_the_factors_and_the_history_counts_them(splits: pd.DataFrame) -> None:
    network, phase = network_of("resnet18"), lora(stages=2)
    result = train(prepared(splits, network), [HEAD, phase])
    report = freeze_report(network, [phase])
    assert result.history["trainable_parameters"].iloc[-1] == report["trainable"].sum()
    assert result.history["thaw_line"].iloc[-1].startswith("layer3")
    freeze_layers(network, phase)
    updates = LowRankUpdates(network, phase, seed=0)
    optimizer = make_optimizer(network, phase, options(), low_rank=updates)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(weight) for weight in low_rank_sizes(network, phase)}
    assert held >= {id(p) for p in network.fc.parameters()}


def test_lora_as_shipped_trains_under_two_percent_of_the_default_backbone() -> None:
    network, _ = build_network(ModelOptions(weights="none"), 10, 64, seed=0)
    strategy = default_parameters().strategies["lora"]
    report = freeze_report(network, strategy.phases)
    backbone = report[report["stage"] != "head"]
    assert 0 < backbone["trainable"].sum() < 0.02 * backbone["parameters"].sum()
