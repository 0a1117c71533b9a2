"""What each phase does with each stage is said, and what it changed there is measured."""

import copy
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import report
from helpers.networks import BranchingNet, SmallNet
from helpers.training import transforms
from thawline.evaluation.stage_summary import (
    describe_stages,
    line_positions,
    linear_cka,
    measure_weight_change,
)
from thawline.networks.building import build_network
from thawline.options import LastStages, ModelOptions, Phase, TrainingOptions
from thawline.reports.figures.model import stage_figure, weight_change_figure
from thawline.thaw.cache import ActivationCache
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.line import split_at_thaw_line

SIZE = 32
OPTIONS = TrainingOptions(num_workers=0, device="cpu")
TRANSFORMS = transforms()


def phases(*trainable: object) -> list[Phase]:
    return [Phase(trainable=t, epochs=1, lr=0.1) for t in trainable]


def history(network: nn.Module, of: list[Phase], size: int = SIZE) -> pd.DataFrame:
    """Return what the history of a training says of the thaw lines."""
    rows = []
    for number, phase in enumerate(of, start=1):
        freeze_layers(network, phase)
        rows.append((number, ", ".join(split_at_thaw_line(network, size).boundary)))
    return pd.DataFrame(rows, columns=["phase", "thaw_line"])


def test_the_table_says_what_each_phase_trains_and_where_its_line_is() -> None:
    network = SmallNet()
    of = phases(LastStages(last=1), ["head", "layer2.1.*"], LastStages(last=3), "all")
    table = describe_stages(network, of, history(network, of), SIZE).set_index("stage")
    assert table["phase_1"].tolist() == ["frozen", "frozen", "frozen", "trained"]
    assert table["phase_2"].tolist() == ["frozen", "frozen", "partly", "trained"]
    assert table["phase_4"].tolist() == ["trained"] * 4
    assert table["below_line_1"].tolist() == [1, 1, 1, 0.5]  # of pool and linear, pool
    assert table["below_line_2"].tolist() == [1, 1, 0.25, 0]  # of four modules, the convolution
    assert line_positions(table.reset_index()) == {1: 3.5, 2: 2.25, 3: 1, 4: 0}
    assert table.loc["layer2", "output"] == "16×4×4"
    assert table["compute"].sum() == pytest.approx(1)


def test_a_line_between_two_stages_of_a_transformer_is_drawn_between_them() -> None:
    options = ModelOptions(backbone="timm/test_vit", weights="none")
    network, _ = build_network(options, 3, 160, seed=0)
    of = phases(LastStages(last=3))
    table = describe_stages(network, of, history(network, of, 160), 160)
    assert table["stage"].iloc[-3:].tolist() == ["blocks.4", "blocks.5", "head"]
    assert line_positions(table) == {1: len(table) - 3}


def test_what_cannot_be_traced_has_its_line_at_the_images_and_no_epoch_has_none() -> None:
    network, of = BranchingNet(), phases(LastStages(last=1), LastStages(last=2))
    table = describe_stages(network, of, history(network, of).head(1), SIZE)
    assert line_positions(table) == {1: 0}
    (line,) = [trace for trace in stage_figure(table).data if trace.name == "thaw line"]
    assert list(line.y) == [-0.5, -0.5]


def test_the_figure_has_every_stage_and_phase_and_the_line_in_its_place() -> None:
    network, of = SmallNet(), phases(LastStages(last=1), ["head", "layer2.1.*"])
    figure = stage_figure(describe_stages(network, of, history(network, of), SIZE))
    ticks = [text.split("<")[1] for text in figure.layout.yaxis.ticktext[:-1]]
    assert ticks == [f"b>{name}" for name in ("stem", "layer1", "layer2", "head")]
    cells = {trace.name: len(trace.y) for trace in figure.data}
    assert cells == {"frozen": 5, "partly trained": 1, "trained": 2, "thaw line": 4}
    (line,) = [trace for trace in figure.data if trace.name == "thaw line"]
    assert list(line.x) == [0.5, 1.5, 1.5, 2.5] and list(line.y) == [3, 3, 1.75, 1.75]


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


@pytest.mark.xdist_group("finished project")
def test_finetune_leaves_tables_and_figures_of_the_model(finished_project: Path) -> None:
    stages = report(finished_project, "stage_table.csv")
    assert stages["phase_1"].tolist() == ["frozen"] * 8 + ["trained"]
    assert line_positions(stages) == {1: pytest.approx(8 + 2 / 3)}  # between pooling and classifier
    change = report(finished_project, "weight_change.csv")
    assert (change["relative_l2"].iloc[:-1] == 0).all() and (change["cka"].iloc[:-1] == 1).all()
    assert change["relative_l2"].iloc[-1] > 0
    for name in ("stage_figure", "weight_change_figure"):
        assert report(finished_project, f"{name}.json")
