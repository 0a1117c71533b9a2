"""The summary says what each phase does with each stage, and where its thaw line lies."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from torch import nn

from helpers.networks import BranchingNet, SmallNet
from thawline.evaluation.stage_summary import describe_stages, line_positions
from thawline.networks.building import build_network
from thawline.options import LastStages, ModelOptions, Phase
from thawline.reports.figures.model import stage_figure
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.line import split_at_thaw_line

SIZE = 32


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
    figure = stage_figure(table)
    (line,) = [trace for trace in figure.data if trace.name == "thaw line"]
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


@pytest.mark.xdist_group("finished project")
def test_finetune_leaves_tables_and_figures_of_the_model(finished_project: Path) -> None:
    reporting = finished_project / "data" / "08_reporting"
    (table,) = (reporting / "stage_table.csv").glob("*/*.csv")
    stages = pd.read_csv(table)
    assert stages["phase_1"].tolist() == ["frozen"] * 8 + ["trained"]
    assert line_positions(stages) == {1: pytest.approx(8 + 2 / 3)}  # between pooling and classifier
    (changes,) = (reporting / "weight_change.csv").glob("*/*.csv")
    change = pd.read_csv(changes)
    assert (change["relative_l2"].iloc[:-1] == 0).all() and (change["cka"].iloc[:-1] == 1).all()
    assert change["relative_l2"].iloc[-1] > 0
    for name in ("stage_figure", "weight_change_figure"):
        assert list((reporting / f"{name}.json").glob("*/*.json"))
