"""Describe a network stage by stage: its size, its thaw lines, and what training changed in it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from thawline.data.transforms import Transforms
from thawline.networks.stages import HEAD, Stage, find_stages, stage_table
from thawline.options import Phase, TrainingOptions
from thawline.thaw.cache import ActivationCache
from thawline.thaw.freezing import freeze_layers, freeze_report
from thawline.thaw.image_set import image_set
from thawline.thaw.line import modules_below_line
from thawline.thaw.probing import compute_features, line_of_stages

MOST_IMAGES = 256  # of the validation split that representations are compared on
FROZEN, PARTLY, TRAINING_GROUPS = "frozen", "partly", "trained"


def describe_stages(
    network: nn.Module, phases: Sequence[Phase], history: pd.DataFrame, size: int
) -> pd.DataFrame:
    """Return a row a stage, from the input on: its size, and what each phase does with it.

    The columns are those of `stages.stage_table` and, for every phase N, phase_N (frozen, partly or
    trained) and below_line_N: the share of its modules, from 0 to 1, that lies below the thaw line
    and so ran once; empty where the phase had no epoch.

    Args:
        network: on the CPU; its modes and `requires_grad` are left as the first phase needs them.
        phases: of the strategy.
        history: of the training, whose `thaw_line` names what crosses the line in each phase.
        size: px, side of the images.
    """
    table = stage_table(network, size)
    report = freeze_report(network, phases)
    lines = dict(zip(history["phase"], history["thaw_line"], strict=True))
    for number, phase in reversed([*enumerate(phases, start=1)]):
        rows = report[report["phase"] == number].set_index("stage").loc[table["stage"]]
        table[f"phase_{number}"] = [
            FROZEN if not trainable else TRAINING_GROUPS if trainable == parameters else PARTLY
            for trainable, parameters in rows[["trainable", "parameters"]].to_numpy()
        ]
        freeze_layers(network, phase)
        shares = _below(network, lines[number].split(", ")) if number in lines else math.nan
        table[f"below_line_{number}"] = shares
    numbers = range(1, len(phases) + 1)
    by_phase = [f"{kind}_{number}" for number in numbers for kind in ("phase", "below_line")]
    return table[["stage", "output", "parameters", "compute", *by_phase]]


def weight_change(
    before: nn.Module,
    after: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache | None = None,
) -> pd.DataFrame:
    """Return how far training moved each stage, a row a stage from the input on.

    Columns, each exactly 0 or 1 (`cka`) for a frozen stage on frozen stages:
        stage, parameters.
        relative_l2: norm of the change of all its parameters, in units of their norm before. The
            head is new, so its change is that from its random beginning.
        statistics_l2: the same of running means and variances of its batch norm; empty without.
        cka: linear centerd kernel alignment (Kornblith et al. 2019, arXiv:1905.00414) of what the
            stage yields before and after, averaged over positions, for at most 256 images of the
            validation split; 1 is the same representation but for rotation and scale. Empty for the
            head, and for a stage without modules.

    Args:
        before: network with the weights that training began with.
        after: the same with those that it ended with.
        splits: the table of `split_dataset`.
        transforms: how files become views.
        options: device and workers.
        store: where the features of `before` are kept.

    Raises:
        OSError: when an image file cannot be read.
    """
    old, new = ({n: t.cpu() for n, t in m.state_dict().items()} for m in (before, after))
    stages = find_stages(before)
    alike = {} if _is_equal(old, new, stages) else _alignments(
        before, after, splits, transforms, options, store
    )  # fmt: skip
    rows = []
    for name, stage in stages.items():
        statistics = _statistics(before, stage)
        rows.append(
            {
                "stage": name,
                "parameters": sum(before.get_parameter(n).numel() for n in stage.parameters),
                "relative_l2": _distance(old, new, stage.parameters),
                "statistics_l2": _distance(old, new, statistics) if statistics else math.nan,
                "cka": alike.get(name, 1.0 if not alike and _has_output(name, stage) else math.nan),
            }
        )
    return pd.DataFrame(rows)


def linear_cka(first: Tensor, second: Tensor) -> float:
    """Return the linear centerd kernel alignment of two sets of features of the same images.

    Kornblith et al. 2019, arXiv:1905.00414: from 0 to 1, and exactly 1 for equal features.

    Args:
        first: (N, any number of features).
        second: (N, any number of features).
    """
    if torch.equal(first, second):
        return 1.0
    grams = []
    for features in (first, second):
        centerd = features.double() - features.double().mean(dim=0)
        grams.append(centerd @ centerd.T)
    norms = grams[0].norm() * grams[1].norm()
    return float((grams[0] * grams[1]).sum() / norms) if norms else 0.0


def line_places(table: pd.DataFrame) -> dict[int, float]:
    """Return for each phase with a thaw line how many stages, also in part, lie below it.

    Args:
        table: of `describe_stages`.
    """
    columns = [c for c in table if str(c).startswith("below_line_") and table[c].notna().all()]
    return {int(str(c).rpartition("_")[2]): float(table[c].sum()) for c in columns}


def _below(network: nn.Module, crossing: Sequence[str]) -> list[float]:
    """Return for each stage the share of the modules in it that lie below a thaw line."""
    used = modules_below_line(network, crossing)
    shares = []
    for stage in find_stages(network).values():
        inside = [below for name, below in used.items() if _is_in(name, stage)]
        shares.append(sum(inside) / len(inside) if inside else math.nan)
    # Where nothing of a stage is called by name, it lies where what comes after it begins.
    for idx in reversed(range(len(shares))):
        if math.isnan(shares[idx]):
            shares[idx] = float(idx + 1 < len(shares) and shares[idx + 1] > 0)
    return shares


def _is_in(name: str, stage: Stage) -> bool:
    """Return whether a module or parameter belongs to a stage."""
    inside = any(f"{name}.".startswith(f"{module}.") for module in stage.modules)
    return inside or name in stage.parameters


def _has_output(name: str, stage: Stage) -> bool:
    return name != HEAD and bool(stage.modules)


def _is_equal(
    old: Mapping[str, Tensor], new: Mapping[str, Tensor], stages: dict[str, Stage]
) -> bool:
    """Return whether all but the head is what it was, to the bit."""
    head = stages[HEAD]
    return all(torch.equal(tensor, new[n]) for n, tensor in old.items() if not _is_in(n, head))


def _statistics(network: nn.Module, stage: Stage) -> list[str]:
    """Return the names of the running means and variances in a stage."""
    return [
        name
        for name, buffer in network.named_buffers()
        if name.endswith(("running_mean", "running_var")) and _is_in(name, stage)
    ]


def _distance(old: Mapping[str, Tensor], new: Mapping[str, Tensor], names: Sequence[str]) -> float:
    """Return the norm of the difference of all tensors together, over that of the old ones."""
    change = math.hypot(*((new[n].double() - old[n].double()).norm().item() for n in names))
    length = math.hypot(*(old[n].double().norm().item() for n in names))
    return change / length if length else math.inf if change else 0.0


def _alignments(
    before: nn.Module,
    after: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache | None,
) -> dict[str, float]:
    """Return the CKA of each stage that has modules, but the head."""
    val_set = image_set(splits, "val", torch.device("cpu"))
    count = len(val_set.labels)
    places = np.linspace(0, count - 1, min(MOST_IMAGES, count)).round().astype(int)
    (some,) = val_set.take([places])
    found = []
    for network in (before, after):
        line = line_of_stages(network)
        features = compute_features(
            line, some, transforms, options, store, "Comparing stages", torch.float32,
            # Nobody will ask for the features of a network that was trained just now again.
            keep=network is before,
        )  # fmt: skip
        found.append([torch.from_numpy(table) for table in features])
    return {name: linear_cka(*pair) for name, *pair in zip(line.boundary, *found, strict=True)}
