"""What the measurements share: photographs, networks, and tables in Markdown."""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from thawline.data.loading import evaluation_images
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.data.transforms import Transforms, build_transforms
from thawline.networks.building import build_network, pretrained_preprocessing
from thawline.networks.libraries import BUNDLED_BACKBONE
from thawline.options import (
    AugmentationOptions,
    CompareOptions,
    DatasetOptions,
    ModelOptions,
    Parameters,
    Phase,
    Strategy,
    TrainingOptions,
    TransformOptions,
)
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.stage_features import head_batches

PHOTOGRAPHS = Path(__file__).parents[2] / "shared" / "data" / "hymenoptera"
PHASES = {  # as in conf/base/parameters_strategies.yml
    "head_only": Phase(trainable={"last": 1}, epochs=25, lr=0.005),
    "freeze_to_layer3": Phase(trainable={"last": 2}, epochs=25, lr=0.001, lr_decay=0.3),
    "full": Phase(trainable="all", epochs=25, lr=0.001, lr_decay=0.5),
}


def photographs(root: Path, seed: int | None = None) -> pd.DataFrame:
    """Return the table of splits: as the folders say, or as Thawline would with this seed.

    Thawline takes a given val/ without test/ for the test split, and validates on a part of train/.
    """
    logging.getLogger("thawline").setLevel(logging.ERROR)
    manifest = find_images(str(root), base=Path(), packaged_folder=Path())
    splits = split_dataset(manifest, DatasetOptions().fractions, seed or 0)
    if seed is None:
        splits["split"] = manifest.set_index("path").loc[splits["path"], "split"].tolist()
    return splits


def build(
    backbone: str, strategy: str, seed: int = 0, head: str = "linear"
) -> tuple[nn.Module, Transforms]:
    """Return a network frozen as the strategy says, and its transforms at their defaults."""
    weights = "default" if backbone == BUNDLED_BACKBONE else "none"  # nothing is downloaded
    model = ModelOptions(backbone=backbone, weights=weights, head=head)
    pretrained = pretrained_preprocessing(model)
    transforms = build_transforms(TransformOptions(), pretrained, seed)
    network, _ = build_network(model, 2, transforms.preprocessing.size, seed)
    freeze_layers(network, PHASES[strategy])
    return network, transforms


def pretrained_features(paths: list[str]) -> Tensor:
    """Return features of the last layer (N, D) float32 of images by the bundled network."""
    network, transforms = build(BUNDLED_BACKBONE, "head_only")
    batches = head_batches(network, evaluation_images(paths), transforms, TrainingOptions())
    return torch.cat([batch.last for batch in batches])


def parameters(views: int | None = 1, seed: int = 0, **training: object) -> Parameters:
    """Return the parameters of a training with these options."""
    return Parameters(
        seed=seed,
        strategies={"head_only": Strategy(phases=[PHASES["head_only"]])},
        compare=CompareOptions(strategies=("head_only",)),
        augmentation=AugmentationOptions(views_per_image=views),
        training=TrainingOptions(**training),
    )


def markdown(table: pd.DataFrame) -> str:
    """Return a table as Markdown."""
    rows = [[str(value) for value in row] for row in table.itertuples(index=False)]
    lines = [list(map(str, table.columns)), ["---"] * len(table.columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def in_a_process_of_its_own(
    module: str, *arguments: object, python: str = sys.executable
) -> dict[str, Any]:
    """Return what `python -m MODULE --one ARGUMENTS` prints as JSON in its last line."""
    command = [python, "-m", module, "--one", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure_tasks(
    module: str,
    tasks: Sequence[dict[str, Any]],
    file: Path | None,
    pythons: Mapping[str, str] = {},
) -> pd.DataFrame:
    """Measure each task in a process of its own; return one row per task, with its result.

    Results are appended to `file`, JSON lines; a task that it has is not measured again. `pythons`
    maps a task's method to the Python that measures it, by default this one.
    """
    lines = file.read_text("utf-8").splitlines() if file and file.exists() else []
    known = {json.dumps(row["task"]): row["result"] for row in map(json.loads, lines)}
    for task in track(tasks, "Measuring", console=Console(stderr=True)):
        text = json.dumps(task)
        if text in known:
            continue
        python = pythons.get(task.get("method", ""), sys.executable)
        known[text] = in_a_process_of_its_own(module, text, python=python)
        line = json.dumps({"task": task, "result": known[text]})
        print(line, file=sys.stderr)
        if file:
            with file.open("a", encoding="utf-8") as results:
                results.write(f"{line}\n")
    return pd.DataFrame([task | known[json.dumps(task)] for task in tasks])


def peak_mb() -> tuple[float, float]:
    """Return the peak resident memory in MB (10^6 bytes): of this process, of its largest child."""
    usage = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    own, child = (u.ru_maxrss * 1024 / 1e6 for u in usage)
    return own, child
