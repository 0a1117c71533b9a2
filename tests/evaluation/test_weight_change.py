"""What training changed in a stage is measured, and nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.networks import SmallNet
from helpers.training import transforms
from thawline.evaluation.stage_summary import linear_cka, measure_weight_change
from thawline.options import TrainingOptions
from thawline.reports.figures.model import weight_change_figure
from thawline.thaw.cache import ActivationCache

OPTIONS = TrainingOptions(num_workers=0, device="cpu")
TRANSFORMS = transforms()


def moved(network: nn.Module, *names: str) -> nn.Module:
    """Return a copy of a network with noise on all parameters and statistics under some names."""
    twin, generator = copy.deepcopy(network), torch.Generator().manual_seed(0)
    for name, tensor in twin.state_dict().items():
        if name.startswith(names) and tensor.is_floating_point():
            tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    return twin


def test_what_is_frozen_did_not_move_and_what_is_trained_did(
    splits: pd.DataFrame, tmp_path: Path
) -> None:
    before = SmallNet().eval()
    after = moved(before, "layer2", "linear")
    cache = ActivationCache(tmp_path, 1)
    table = measure_weight_change(before, after, splits, TRANSFORMS, OPTIONS, cache)
    change = table.set_index("stage")
    for stage in ("stem", "layer1"):
        assert change.loc[stage, "relative_l2"] == 0 and change.loc[stage, "cka"] == 1
    assert change.loc["layer1", "statistics_l2"] == 0
    assert 0 < change.loc["layer2", "cka"] < 1
    assert change.loc["layer2", "statistics_l2"] > 0
    flat = [torch.cat([p.flatten() for p in n.layer2.parameters()]) for n in (before, after)]
    expected = ((flat[1] - flat[0]).norm() / flat[0].norm()).item()
    assert change.loc["layer2", "relative_l2"] == pytest.approx(expected, rel=1e-5)
    assert change.loc["head", "relative_l2"] > 0 and np.isnan(change.loc["head", "cka"])
    again = measure_weight_change(before, after, splits, TRANSFORMS, OPTIONS)
    pd.testing.assert_frame_equal(again, table)


def test_a_backbone_that_did_not_move_needs_no_image() -> None:
    before = SmallNet().eval()
    nowhere = pd.DataFrame({"path": ["nowhere.jpg"], "split": "val", "class_index": 0})
    change = measure_weight_change(before, moved(before, "linear"), nowhere, TRANSFORMS, OPTIONS)
    assert change["cka"].tolist()[:-1] == [1, 1, 1]
    assert change["relative_l2"].tolist()[:-1] == [0, 0, 0]
    figure = weight_change_figure(change)
    assert list(figure.data[0].x) == [0, 0, 0]
    assert f"changed by {change['relative_l2'].iloc[-1]:.2g}" in figure.layout.annotations[0].text


def test_batch_norm_that_forgot_is_seen_in_its_statistics_alone(splits: pd.DataFrame) -> None:
    before, after = SmallNet().eval(), SmallNet().eval()
    after.load_state_dict(before.state_dict())
    after.layer2[1].running_mean += torch.arange(16.0)
    change = measure_weight_change(before, after, splits, TRANSFORMS, OPTIONS).set_index("stage")
    assert change.loc["layer2", "relative_l2"] == 0
    assert change.loc["layer2", "statistics_l2"] > 0
    assert change.loc["layer1", ["statistics_l2", "cka"]].tolist() == [0, 1]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(3, 12), st.integers(1, 12), st.floats(0.1, 10))
def test_cka_knows_no_rotation_and_no_scale(
    seed: int, images: int, features: int, scale: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(images, features, generator=generator, dtype=torch.float64)
    second = torch.randn(images, 5, generator=generator, dtype=torch.float64)
    square = torch.randn(features, features, generator=generator, dtype=torch.float64)
    rotation = torch.linalg.qr(square)[0]
    assert linear_cka(first, first) == 1
    assert linear_cka(first, scale * first @ rotation + 3) == pytest.approx(1)
    value = linear_cka(first, second)
    assert 0 <= value <= 1 and value == pytest.approx(linear_cka(second, first))
    x, y = (t - t.mean(dim=0) for t in (first, second))  # as the paper's equation for features
    expected = (y.T @ x).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())
    assert value == pytest.approx(expected.item())
