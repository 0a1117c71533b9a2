"""The optimizer holds what is trainable; rates and averages follow their formulas."""

import pytest
import timm
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.training import EVERYTHING, HEAD, network_of, options, random_phases
from thawline.options import Phase
from thawline.thaw.freezing import freeze_layers
from thawline.training.optimizer import (
    ema_weights,
    find_undecayed,
    load_ema,
    lr_factor,
    make_ema,
    make_optimizer,
    update_ema,
)

NORMS_THEN_ALL = [
    Phase(trainable=["norms"], epochs=1, lr=0.1, optimizer="sgd"),
    Phase(trainable="all", epochs=1, lr=0.1, optimizer="sgd"),
]


@given(random_phases)
@example(NORMS_THEN_ALL)
@settings(max_examples=100)
def test_the_optimizer_holds_the_trainable_parameters_in_every_phase(phases: list[Phase]) -> None:
    network = network_of()
    optimizer = None
    for each in phases:
        freeze_layers(network, each)
        previous, optimizer = optimizer, make_optimizer(network, each, options(), optimizer)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        wanted = [p for p in network.parameters() if p.requires_grad]
        assert len(held) == len(wanted)
        assert {id(p) for p in held} == {id(p) for p in wanted}
        goes_on = previous and type(previous) is type(optimizer)
        carried = {id(p) for p in held if goes_on and p in previous.state}
        assert {id(p) for p in optimizer.state} == carried
        network(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()


def test_moments_of_what_stays_trainable_are_carried_over() -> None:
    network = network_of()
    first = Phase(trainable={"last": 1}, epochs=1, lr=0.1)
    both = Phase(trainable={"last": 2}, epochs=1, lr=0.01, lr_decay=0.5)
    freeze_layers(network, first)
    optimizer = make_optimizer(network, first, options())
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    moments = optimizer.state[network.linear.weight]["exp_avg"].clone()
    freeze_layers(network, both)
    carried = make_optimizer(network, both, options(), optimizer)
    assert torch.equal(carried.state[network.linear.weight]["exp_avg"], moments)
    rates = {group["name"]: group["lr"] for group in carried.param_groups}
    assert rates == {"head": 0.01, "layer2": 0.005}
    other = both.model_copy(update={"optimizer": "sgd"})
    assert not make_optimizer(network, other, options(), optimizer).state


VIT = {"image_size": 32, "patch_size": 16, "num_layers": 1, "num_heads": 2, "hidden_dim": 8,
       "mlp_dim": 8}  # fmt: skip
IN_LAYER = ("self_attention.in_proj_weight", "self_attention.out_proj.weight")
IN_LAYER += ("mlp.0.weight", "mlp.3.weight")
DECAYED_IN_VIT = {f"encoder.layers.encoder_layer_0.{name}" for name in IN_LAYER}
DECAYED_IN_VIT |= {"conv_proj.weight", "heads.head.weight"}
DECAYED_IN_SMALL = {"conv1.weight", "layer1.0.weight", "layer2.0.weight", "linear.weight"}


@pytest.mark.parametrize(
    ("backbone", "arguments", "decayed"),
    [
        ("helpers.networks:SmallNet", {}, DECAYED_IN_SMALL),
        ("torchvision.models:VisionTransformer", VIT, DECAYED_IN_VIT),
    ],
)
def test_weight_decay_spares_biases_norms_and_position_embeddings(
    backbone: str, arguments: dict, decayed: set[str]
) -> None:
    network = network_of(backbone, backbone_kwargs=arguments)
    names = {parameter: name for name, parameter in network.named_parameters()}
    for changes, expected in (({}, decayed), ({"decay_all": True}, {*names.values()})):
        freeze_layers(network, EVERYTHING)
        optimizer = make_optimizer(network, EVERYTHING, options(weight_decay=0.1, **changes))
        groups = optimizer.param_groups
        assert groups[0]["name"] == "head"
        found = {names[p] for group in groups if group["weight_decay"] for p in group["params"]}
        assert found == expected
        assert {group["weight_decay"] for group in groups} <= {0.1, 0.0}
        assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_a_network_of_timm_says_itself_what_weight_decay_spares(name: str) -> None:
    network = timm.create_model(name, num_classes=2)
    names = {parameter: name for name, parameter in network.named_parameters()}
    spared = {names[parameter] for parameter in find_undecayed(network)}
    assert network.no_weight_decay() & {n for n, _ in network.named_parameters()} <= spared
    assert {n for n, p in network.named_parameters() if p.ndim <= 1} <= spared
    assert "head.weight" not in spared and "head.fc.weight" not in spared


def test_sgd_and_adamw_take_their_options() -> None:
    network = network_of()
    sgd = make_optimizer(network, EVERYTHING, options(optimizer="sgd", momentum=0.7))
    adamw = make_optimizer(network, EVERYTHING, options(weight_decay=0.3))
    assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.7
    assert isinstance(adamw, torch.optim.AdamW) and adamw.param_groups[0]["weight_decay"] == 0.3


@given(
    st.sampled_from(["cosine", "step", "constant"]),
    st.integers(1, 50),
    st.integers(1, 40),
    st.floats(0, 0.9),
)
def test_the_rate_rises_in_the_warm_up_and_never_afterwards(
    schedule: str, epochs: int, updates: int, warmup: float
) -> None:
    chosen = options(schedule=schedule, warmup_ratio=warmup, step_epochs=3)
    phase = HEAD.model_copy(update={"epochs": epochs})
    factors = [lr_factor(step, phase, updates, chosen) for step in range(epochs * updates)]
    start = int(warmup * len(factors))
    assert all(0 < f <= 1 for f in factors)
    assert factors[:start] == sorted(factors[:start])
    if schedule != "step":
        assert factors[start] == 1
    assert factors[start:] == sorted(factors[start:], reverse=True)


def test_the_average_follows_the_weights_with_a_warm_up() -> None:
    network = nn.Linear(3, 1, bias=False)
    weights = network.weight.detach().zero_()
    ema, expected = make_ema(network, decay=0.9), torch.zeros(1, 3)
    for update in range(1, 200):
        weights += 1
        update_ema(ema, network, update)
        decay = min(0.9, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * weights
        torch.testing.assert_close(ema.module.weight.detach(), expected)
    assert 199 - expected[0, 0] == pytest.approx(9, rel=1e-3)  # decay / (1 - decay)
    with ema_weights(network, ema):
        torch.testing.assert_close(weights, expected)
    assert weights.tolist() == [[199] * 3]
    load_ema(network, ema)
    torch.testing.assert_close(weights, expected)
