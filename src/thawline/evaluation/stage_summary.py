"""Describe a network stage by stage: size, training, thaw lines, and change of the weights."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from thawline.data.transforms import Transforms
from thawline.networks.stages import HEAD, Stage, find_stages, stage_table
from thawline.options import Phase, TrainingOptions
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.thaw.freezing import freeze_layers, freeze_report
from thawline.thaw.image_set import image_set
from thawline.thaw.line import modules_below_line
from thawline.thaw.stage_features import stage_features

FROZEN, PARTLY, TRAINED = "frozen", "partly", "trained"
MAX_IMAGES = 256  # of the validation split that representations are compared on


def describe_stages(
    network: nn.Module, phases: Sequence[Phase], history: pd.DataFrame, size: int
) -> pd.DataFrame:
    """Return one row per stage, from the input on: its size, and what each phase does with it.

    The network is on the CPU, and is left as the first phase needs it. `thaw_line` in the history
    names the boundary of each phase; `size` is the side of the images in px.

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


def measure_weight_change(
    before: nn.Module,
    after: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache = NO_CACHE,
) -> pd.DataFrame:
    """Return how far training moved each stage, one row per stage from the input on.

    `store` keeps the features of the network as it was before.

    Returns:
        stage and parameters.
        relative_l2: norm of the change of all parameters, relative to their norm before; 0 for a
            frozen stage. The head is new, so its change is that from its random beginning.
        statistics_l2: the same of the running means and variances of batch norm; empty without.
        cka: `linear_cka` of the stage's output before and after, averaged over positions, for at
            most `MAX_IMAGES` validation images; 1 for a frozen stage on frozen stages. Empty for
            the head, and for a stage without modules.

    Raises:
        DataError: if an image file cannot be read.
    """
    old, new = ({n: t.cpu() for n, t in m.state_dict().items()} for m in (before, after))
    stages = find_stages(before)
    backbone = [name for name in old if not is_in_stage(name, stages[HEAD])]
    if all(torch.equal(old[name], new[name]) for name in backbone):
        cka = {name: 1.0 for name, stage in stages.items() if name != HEAD and stage.modules}
    else:
        val_set = image_set(splits, "val", torch.device("cpu"))
        count = len(val_set.labels)
        positions = np.linspace(0, count - 1, min(MAX_IMAGES, count)).round().astype(int)
        (images,) = val_set.take([positions])
        args = images, transforms, options, store, torch.float32
        features = [stage_features(before, *args), stage_features(after, *args, keep=False)]
        cka = {
            name: linear_cka(*(torch.from_numpy(each[name]) for each in features))
            for name in features[0]
        }
    rows = []
    for name, stage in stages.items():
        statistics = [
            n for n in old if n.endswith(("running_mean", "running_var")) and is_in_stage(n, stage)
        ]
        rows.append(
            {
                "stage": name,
                "parameters": sum(before.get_parameter(n).numel() for n in stage.parameters),
                "relative_l2": _relative_l2(old, new, stage.parameters),
                "statistics_l2": _relative_l2(old, new, statistics) if statistics else math.nan,
                "cka": cka.get(name, math.nan),
            }
        )
    return pd.DataFrame(rows)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centered kernel alignment of two sets of features of the same images.

    Kornblith et al. 2019, arXiv:1905.00414: from 0 to 1, whatever the rotation and the scale, and
    exactly 1 for equal features. The two (N, features) may differ in the number of features.
    """
    if torch.equal(first, second):
        return 1.0
    centered = (each.double() - each.double().mean(dim=0) for each in (first, second))
    one, other = (each @ each.T for each in centered)
    norms = one.norm() * other.norm()
    return float((one * other).sum() / norms) if norms else 0.0


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


def _relative_l2(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], names: Sequence[str]
) -> float:
    """Return the norm of the change of all tensors together, over their norm before."""
    change = math.hypot(*((new[n].double() - old[n].double()).norm().item() for n in names))
    length = math.hypot(*(old[n].double().norm().item() for n in names))
    return change / length if length else math.inf if change else 0.0
