"""From phase to phase: what is trained, what is kept, and what is carried over."""

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import train_set_of
from thawline.data.transforms import build_transforms, make_mix
from thawline.networks.building import IMAGENET, build_network
from thawline.options import (
    AugmentationOptions,
    ModelOptions,
    Phase,
    TrainingOptions,
    TransformOptions,
)
from thawline.thaw.freezing import find_stages, freeze_layers
from thawline.training.loop import train
from thawline.training.optimizer import ema_weights, load_ema, make_ema, make_optimizer, update_ema
from thawline.training.progress import TrainingResult
from thawline.training.setup import make_loss, prepare

MODEL = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
STAGES = ["stem", "layer1", "layer2", "head"]
OPTIONS = TrainingOptions(num_workers=0, precision="fp32", batch_size=8)

trainable = st.one_of(
    st.just("all"),
    st.builds(lambda last: {"last": last}, st.integers(1, 6)),
    st.lists(st.sampled_from([*STAGES, "*.bias", "layer?.1.*"]), min_size=1, max_size=3),
)
phase = st.builds(
    Phase,
    trainable=trainable,
    epochs=st.just(1),
    lr=st.floats(1e-3, 1e-2),
    lr_decay=st.floats(0.3, 1),
    batch_norm=st.sampled_from(["train", "eval"]),
    optimizer=st.sampled_from([None, "sgd", "adamw"]),
)
random_strategies = st.lists(phase, min_size=1, max_size=4)


def run(
    splits: pd.DataFrame, *phases: Phase, mixup: float = 0, **changes: object
) -> TrainingResult:
    setup = prepare(
        build_network(MODEL, 2, 32, seed=0)[0],
        splits,
        build_transforms(TransformOptions(size=32), IMAGENET),
        OPTIONS.model_copy(update=changes),
        seed=0,
        views=1,
        mix=make_mix(AugmentationOptions(mixup=mixup), 2),
    )
    return train(setup, phases)


@given(random_strategies)
@settings(max_examples=100)
def test_the_optimizer_holds_the_trainable_parameters_in_every_phase(phases: list[Phase]) -> None:
    network, _ = build_network(MODEL, 2, 32, seed=0)
    optimizer = None
    for each in phases:
        freeze_layers(network, each)
        previous, optimizer = optimizer, make_optimizer(network, each, OPTIONS, optimizer)
        held = [p for group in optimizer.param_groups for p in group["params"]]
        wanted = [p for p in network.parameters() if p.requires_grad]
        assert len(held) == len(wanted)
        assert {id(p) for p in held} == {id(p) for p in wanted}
        carried = {
            id(p) for p in held if previous and type(previous) is type(optimizer)
            and p in previous.state
        }  # fmt: skip
        assert {id(p) for p in optimizer.state} == carried
        network(torch.randn(2, 3, 32, 32)).sum().backward()
        optimizer.step()


@given(random_strategies)
@settings(max_examples=10)
def test_what_a_phase_freezes_is_the_same_to_the_bit_before_and_after_it(
    splits: pd.DataFrame, phases: list[Phase]
) -> None:
    before = build_network(MODEL, 2, 32, seed=0)[0].state_dict()
    for count, each in enumerate(phases, start=1):
        network, _ = build_network(MODEL, 2, 32, seed=0)
        after = run(splits, *phases[:count]).last  # the same seed repeats the phases before
        freeze_layers(network, each)
        trained = {name for name, p in network.named_parameters() if p.requires_grad}
        for name, stage in find_stages(network).items():
            if trained.intersection(stage.parameters):
                continue
            prefixes = (*stage.parameters, *(f"{module}." for module in stage.modules))
            for tensor in before:
                if tensor.startswith(prefixes):
                    assert torch.equal(after[tensor], before[tensor]), (name, tensor)
        for name in trained:
            if name.endswith("bias"):  # before batch norm it has no gradient, and no decay moves it
                continue
            assert not torch.equal(after[name], before[name]), name
        before = after


def test_moments_of_what_stays_trainable_are_carried_over(splits: pd.DataFrame) -> None:
    network, _ = build_network(MODEL, 2, 32, seed=0)
    first = Phase(trainable={"last": 1}, epochs=1, lr=0.1)
    both = Phase(trainable={"last": 2}, epochs=1, lr=0.01, lr_decay=0.5)
    freeze_layers(network, first)
    optimizer = make_optimizer(network, first, OPTIONS)
    network(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.step()
    moments = optimizer.state[network.linear.weight]["exp_avg"].clone()
    freeze_layers(network, both)
    carried = make_optimizer(network, both, OPTIONS, optimizer)
    assert torch.equal(carried.state[network.linear.weight]["exp_avg"], moments)
    assert {group["name"]: group["lr"] for group in carried.param_groups} == {
        "head": 0.01,
        "layer2": 0.005,
    }
    other = both.model_copy(update={"optimizer": "sgd"})
    assert not make_optimizer(network, other, OPTIONS, optimizer).state


def test_the_history_says_where_the_line_is_and_what_is_trained(splits: pd.DataFrame) -> None:
    head = Phase(trainable={"last": 1}, epochs=1, lr=0.1)
    two = Phase(trainable={"last": 2}, epochs=1, lr=0.01, lr_decay=0.5)
    all_of_it = Phase(trainable="all", epochs=1, lr=0.001)
    history = run(splits, head, two, all_of_it, warmup_ratio=0.0).history
    assert history["phase"].tolist() == [1, 2, 3]
    assert history["thaw_line"].tolist() == ["flatten", "layer1_3", "images"]
    network, _ = build_network(MODEL, 2, 32, seed=0)
    total = sum(p.numel() for p in network.parameters())
    assert history["trainable_parameters"].tolist()[::2] == [34, total]
    assert history["lr"].tolist() == [0.1, 0.01, 0.001]
    assert history["lr/layer2"].tolist()[1:] == [0.005, 0.001]
    assert history["lr/stem"].isna().tolist() == [True, True, False]


def test_a_phase_may_have_its_own_optimizer_schedule_and_patience(splits: pd.DataFrame) -> None:
    impatient = Phase(
        trainable={"last": 1}, epochs=30, lr=1e-9, schedule="constant", optimizer="sgd", patience=2
    )
    thaw = Phase(trainable="all", epochs=2, lr=0.001)
    history = run(splits, impatient, thaw, warmup_ratio=0.0).history
    assert history["phase"].value_counts()[1] < 30
    assert history["phase"].value_counts()[2] == 2
    assert set(history["lr"].iloc[1:3]) == {1e-9}


def test_without_epochs_the_network_stays_as_it_was_loaded(splits: pd.DataFrame) -> None:
    result = run(splits, Phase(trainable="all", epochs=0, lr=0.1))
    loaded = build_network(MODEL, 2, 32, seed=0)[0].state_dict()
    assert result.best_epoch == 0 and result.history.empty
    for state in (result.best, result.last):
        assert all(torch.equal(state[name], loaded[name]) for name in loaded)


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


def test_with_an_average_the_network_ends_at_it(splits: pd.DataFrame) -> None:
    phases = [
        Phase(trainable={"last": last}, epochs=2, lr=0.01, batch_norm="eval") for last in (1, 2)
    ]
    plain, averaged = run(splits, *phases), run(splits, *phases, ema_decay=0.999)
    start = build_network(MODEL, 2, 32, seed=0)[0].state_dict()
    moved = {
        name: (averaged.last[name] - start[name]).norm() / (plain.last[name] - start[name]).norm()
        for name in ("linear.weight", "layer2.0.weight")
    }
    assert all(0 < share < 1 for share in moved.values()), moved  # it lags behind
    assert torch.equal(averaged.last["layer1.0.weight"], start["layer1.0.weight"])


@given(st.integers(0, 2**32))
@settings(max_examples=30)
def test_balanced_sampling_shows_every_class_equally_often(seed: int) -> None:
    labels = torch.tensor([0] * 950 + [1] * 50)
    order = train_set_of(labels).shuffle(torch.Generator().manual_seed(seed), 32, balanced=True)
    drawn = labels[[idx for batch in order for idx in batch]]
    assert len(drawn) == 1000
    assert 0.4 < drawn.float().mean() < 0.6


def test_mixed_images_have_shares_of_labels_and_train_without_a_store(
    splits: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    images, labels = torch.rand(8, 3, 16, 16), torch.arange(8) % 3
    for options in ({"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}):
        mix = make_mix(AugmentationOptions(**options), 3)
        mixed, shares = mix(images, labels)
        assert mixed.shape == images.shape and shares.shape == (8, 3)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(8))
        # Of each image and its partner, the share that is left equals the label's.
        partners = images.roll(1, 0)
        left = ((mixed - partners) / (images - partners)).mean(dim=(1, 2, 3))
        own = torch.nn.functional.one_hot(labels, 3)
        torch.testing.assert_close(
            shares, left[:, None] * own + (1 - left[:, None]) * own.roll(1, 0), atol=1e-3, rtol=0
        )
    assert make_mix(AugmentationOptions(), 3) is None
    phase = Phase(trainable={"last": 1}, epochs=3, lr=0.01)
    with caplog.at_level("INFO"):
        result = run(splits, phase, mixup=0.2)
    assert "the whole network runs in every step and nothing is cached" in caplog.text
    assert result.history["thaw_line"].unique().tolist() == ["images"]
    assert result.history["val_loss"].iloc[-1] < result.history["val_loss"].iloc[0]


def test_soft_labels_and_class_weights_go_together(splits: pd.DataFrame) -> None:
    loss = make_loss(splits, OPTIONS.model_copy(update={"class_weights": "balanced"}), False)
    assert torch.isfinite(loss(torch.zeros(2, 2), torch.tensor([[0.3, 0.7], [1.0, 0.0]])))
