"""Describe a network stage by stage: its size, what each phase trains, and where its line lies."""

import math
from collections.abc import Sequence

import pandas as pd
from torch import nn

from thawline.networks.stages import Stage, find_stages, stage_table
from thawline.options import Phase
from thawline.thaw.freezing import freeze_layers, freeze_report
from thawline.thaw.line import modules_below_line

FROZEN, PARTLY, TRAINED = "frozen", "partly", "trained"


def describe_stages(
    network: nn.Module, phases: Sequence[Phase], history: pd.DataFrame, size: int
) -> pd.DataFrame:
    """Return one row per stage, from the input on: its size, and what each phase does with it.

    Args:
        network: on the CPU; its modes and `requires_grad` are left as the first phase needs them.
        phases: of the strategy.
        history: of the training, whose `thaw_line` names the boundary of each phase.
        size: px, side of the images.

    Returns:
        the columns of `stages.stage_table`; for every phase N, phase_N (frozen, partly or trained)
        and below_line_N: the fraction of the stage's modules below the thaw line, from 0 to 1;
        empty if the phase had no epoch.
    """
    table = stage_table(network, size)
    report = freeze_report(network, phases)
    lines = dict(zip(history["phase"], history["thaw_line"], strict=True))
    for number, phase in reversed([*enumerate(phases, start=1)]):
        rows = report[report["phase"] == number].set_index("stage").loc[table["stage"]]
        table[f"phase_{number}"] = [
            FROZEN if not trainable else TRAINED if trainable == parameters else PARTLY
            for trainable, parameters in rows[["trainable", "parameters"]].to_numpy()
        ]
        freeze_layers(network, phase)
        below = _fractions_below(network, lines[number].split(", ")) if number in lines else None
        table[f"below_line_{number}"] = math.nan if below is None else below
    numbers = range(1, len(phases) + 1)
    by_phase = [f"{kind}_{number}" for number in numbers for kind in ("phase", "below_line")]
    return table[["stage", "output", "parameters", "compute", *by_phase]]


def line_positions(table: pd.DataFrame) -> dict[int, float]:
    """Return for each phase with a thaw line how many stages, also in part, lie below it."""
    columns = [c for c in table if str(c).startswith("below_line_") and table[c].notna().all()]
    return {int(str(c).rpartition("_")[2]): float(table[c].sum()) for c in columns}


def is_in_stage(name: str, stage: Stage) -> bool:
    """Return whether a module, parameter or buffer belongs to a stage."""
    inside = any(f"{name}.".startswith(f"{module}.") for module in stage.modules)
    return inside or name in stage.parameters


def _fractions_below(network: nn.Module, boundary: Sequence[str]) -> list[float]:
    """Return the fraction of the modules of each stage below a thaw line."""
    is_below = modules_below_line(network, boundary)
    fractions = []
    for stage in find_stages(network).values():
        inside = [below for name, below in is_below.items() if is_in_stage(name, stage)]
        fractions.append(sum(inside) / len(inside) if inside else math.nan)
    below = pd.Series(fractions)
    # A stage without modules lies where the stage after it begins.
    return below.fillna((below.bfill() > 0).astype(float)).tolist()
