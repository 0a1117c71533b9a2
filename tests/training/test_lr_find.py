"""The sweep of the learning rate finds one that trains, and leaves the network as it was."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers.training import network_of, parameters, same, transforms
from thawline.networks.building import build_network
from thawline.options import LrFindOptions, ModelOptions, Phase
from thawline.reports.figures.training import lr_curve
from thawline.thaw.cache import ActivationCache
from thawline.training.lr_find import find_lr, suggest_lr
from thawline.training.setup import prepare

SIZE = 64
HEAD = Phase(trainable={"last": 1}, epochs=1, lr=0.005)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return build_network(ModelOptions(), 2, SIZE, seed=0)[0]


def sweep(network: nn.Module, splits: pd.DataFrame, phase: Phase = HEAD, **kwargs) -> pd.DataFrame:
    options = LrFindOptions(**kwargs.pop("sweep", {}))
    setup = prepare(parameters(views=1), network, splits, transforms(SIZE), **kwargs)
    return find_lr(setup, phase, options)


def test_rates_rise_by_one_factor_from_low_to_high(
    network: nn.Module, splits: pd.DataFrame
) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    curve = sweep(network, splits, sweep={"start_lr": 1e-5, "end_lr": 1e-2, "steps": 31})
    np.testing.assert_allclose(curve["lr"], np.geomspace(1e-5, 1e-2, 31))
    assert same(before, network.state_dict())


def test_it_stops_where_the_loss_explodes_and_suggests_less(
    network: nn.Module, splits: pd.DataFrame, tmp_path: Path
) -> None:
    how = {"sweep": {"start_lr": 1e-4, "end_lr": 1e5, "steps": 90}}
    how["cache"] = ActivationCache(tmp_path, 1)
    curve = sweep(network, splits, **how)
    assert len(curve) < 90
    assert curve["smoothed"].iloc[-1] > 4 * curve["smoothed"].min()
    suggested = suggest_lr(curve)
    assert 1e-4 <= suggested < curve["lr"].iloc[-1]
    assert curve.loc[curve["lr"] > suggested, "smoothed"].min() < curve["smoothed"].iloc[0]
    pd.testing.assert_frame_equal(curve, sweep(network, splits, **how))


def test_the_rates_of_all_stages_rise_together(splits: pd.DataFrame) -> None:
    phase = Phase(trainable="all", epochs=1, lr=0.001, lr_decay=0.5, optimizer="sgd")
    rates = {"start_lr": 1e-4, "end_lr": 1e-3, "steps": 20}
    found: dict[str, list[float]] = {}

    def note(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            found.setdefault(group["name"], []).append(group["lr"])

    hook = register_optimizer_step_post_hook(note)
    curve = sweep(network_of(), splits, phase, sweep=rates)
    hook.remove()
    assert len(curve) == 20 and np.isfinite(curve["loss"]).all()
    assert len({own[0] for own in found.values()}) == len(found) > 2
    assert [own[-1] / own[0] for own in found.values()] == pytest.approx([10] * len(found))


def test_the_middle_of_the_fall_is_suggested() -> None:
    rates = np.geomspace(1e-5, 1, 50)
    loss = 1 / (1 + np.exp(2 * (np.log(rates) - np.log(1e-3)))) + (rates > 0.1) * 5
    curve = pd.DataFrame({"lr": rates, "loss": loss, "smoothed": loss})
    assert suggest_lr(curve) == pytest.approx(1e-3, rel=0.3)
    marks = [trace.name for trace in lr_curve(curve, 1e-3, 5e-3).data]
    assert marks[2:] == ["suggested: 0.001", "of the strategy: 0.005"]


def test_a_loss_that_only_rises_suggests_the_lowest_rate() -> None:
    curve = pd.DataFrame({"lr": [1e-5, 1e-4], "loss": [1.0, 2.0], "smoothed": [1.0, 2.0]})
    assert suggest_lr(curve) == 1e-5
