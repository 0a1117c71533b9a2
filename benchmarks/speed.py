"""How fast Thawline trains beside the plain loop of a tutorial, on the same images and machine.

    python -m benchmarks.speed [--backbones resnet18 resnet50] [--epochs 25] [--plain-epochs 2]
        [--fastai --fastai-python /path/to/python]

Every figure comes from a process of its own, one after the other: training takes 244 and validation
153 photographs of ants and bees at 224 px. Weights are random where they would have to be
downloaded: speed does not depend on them. What is measured is the training node
(`thawline.pipelines.finetune.nodes.train_model`), and with --process `kedro run` up to the
evaluation, since the loop draws no figures either. `all_stages` is compared with the loop that
trains the head, among the rows of `head_only`. fastai trains the same layers of the same network
with its own loaders and augmentation, by `fit_one_cycle`; it is no dependency, see
`benchmarks.accuracy`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from benchmarks import accuracy, common, tutorial
from thawline.data.transforms import Preprocessing
from thawline.options import AugmentationOptions, ModelOptions, Phase, Strategy
from thawline.sweep.auto import Choice
from thawline.training.state import TrainingCheckpoints

ROOT = Path(__file__).parents[1]
TUTORIAL, FASTAI = "tutorial loop", "fastai"
ALL_STAGES = "all_stages"
FITTED = Phase(trainable={"last": 1}, optimizer="lbfgs")  # the only phase of all_stages
SHORT = 20  # seconds; of what takes less, the median of three processes is given
DEFAULT_VIEWS = str(AugmentationOptions().views_per_image)


def main() -> None:
    """Measure and print the table, a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=common.PHOTOGRAPHS)
    parser.add_argument("--backbones", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--strategies", nargs="*", choices=common.PHASES, default=[*common.PHASES])
    parser.add_argument("--views", nargs="*", default=["1", DEFAULT_VIEWS, "null"])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument(
        "--plain-epochs", type=int, help="run the plain loop and fastai for fewer, and multiply"
    )
    accuracy.add_fastai_options(parser)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--process", action="store_true", help="measure `kedro run` as well")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(argparse.Namespace(**json.loads(arguments.one)))))
        return
    accuracy.check_fastai(parser, arguments)
    if arguments.process and arguments.plain_epochs:
        parser.error("--process needs all epochs of the plain loop: leave --plain-epochs out")
    columns = ["backbone", "strategy", "", "seconds", "faster", "images/s", "peak MB", "of floor"]
    print(common.markdown(pd.DataFrame(columns=columns)), flush=True)
    for backbone in arguments.backbones:
        floor = one(arguments, backbone, "head_only", "floor")["seconds"]
        for strategy in arguments.strategies:
            reference = None
            for row in rows(arguments, backbone, strategy):
                seconds = row["seconds"]
                if row["what"] == TUTORIAL:
                    plain = row["process"]
                reference = reference or seconds
                images = row["images"] * arguments.epochs
                faster = f"{reference / seconds:.1f}x"
                cells = [
                    backbone, row.get("strategy", strategy), row["what"], f"{seconds:.2f}", faster,
                    f"{images / seconds:.0f}", f"{row['peak']:.0f}", f"{floor / seconds:.0%}",
                ]  # fmt: skip
                print(f"| {' | '.join(cells)} |", flush=True)
            if arguments.process and strategy == "head_only":
                whole_processes(arguments, backbone, plain)
        print(f"\nfloor of {backbone}: {floor:.2f} s", flush=True)


def rows(arguments: argparse.Namespace, backbone: str, strategy: str) -> Any:
    """Yield what was measured of one backbone and strategy, the plain loop first."""
    epochs = arguments.plain_epochs or arguments.epochs
    factor = arguments.epochs / epochs
    note = "" if factor == 1 else f" ({epochs} epochs, x {factor:.3g})"
    for plain in (TUTORIAL, FASTAI) if arguments.fastai else (TUTORIAL,):
        row = one(arguments, backbone, strategy, plain, epochs)
        yield row | {"what": plain + note, "seconds": row["seconds"] * factor}
    for views in arguments.views:
        row = median(arguments, backbone, strategy, views)
        yield row | {"what": f"views: {views}, empty store"}
        if views == "1":
            yield row | {"what": f"views: {views}, full store", "seconds": row["again"]}
    if strategy == "head_only":
        row = median(arguments, backbone, ALL_STAGES, "1")
        yield row | {"strategy": ALL_STAGES, "what": "empty store"}


def median(
    arguments: argparse.Namespace, backbone: str, strategy: str, views: str
) -> dict[str, Any]:
    """Return what a process measures, or the median of three if it is short."""
    row = one(arguments, backbone, strategy, views)
    if row["seconds"] < SHORT:  # the machine's moods weigh more in a short one
        again = [one(arguments, backbone, strategy, views) for _ in range(2)]
        row = sorted([row, *again], key=itemgetter("seconds"))[1]
    return row


def one(
    arguments: argparse.Namespace, backbone: str, strategy: str, what: str, epochs: int = 0
) -> dict[str, Any]:
    """Return what a process of its own measures."""
    task = {
        "root": str(arguments.root), "backbone": backbone, "strategy": strategy, "what": what,
        "epochs": epochs or arguments.epochs, "batch_size": arguments.batch_size,
        "device": arguments.device,
    }  # fmt: skip
    start = time.perf_counter()
    python = arguments.fastai_python if what == FASTAI else sys.executable
    row = common.in_a_process_of_its_own("benchmarks.speed", json.dumps(task), python=python)
    return row | {"process": time.perf_counter() - start}


def measure(task: argparse.Namespace) -> dict[str, Any]:
    """Return seconds and peak memory of training once, and seconds of doing it again."""
    splits = common.photographs(Path(task.root))
    if task.strategy == ALL_STAGES:
        frozen, head, phase = "head_only", ALL_STAGES, FITTED
    else:
        frozen, head = task.strategy, "linear"
        phase = common.PHASES[frozen].model_copy(update={"epochs": task.epochs})
    network, transforms = common.build(task.backbone, frozen, head=head)
    result: dict[str, Any] = {"images": len(splits)}
    if task.what == "floor":
        return result | {"seconds": len(splits) / peak_rate(task)}
    start = time.perf_counter()
    if task.what == TUTORIAL:
        tutorial.train(
            network, splits, transforms.preprocessing, phase.lr, task.epochs, task.batch_size,
            device=task.device,
        )  # fmt: skip
    elif task.what == FASTAI:
        train_fastai(network, splits, transforms.preprocessing, phase, task.batch_size)
    else:
        from thawline.pipelines.finetune.nodes import train_model

        views = None if task.what == "null" else int(task.what)
        chosen = common.parameters(views, batch_size=task.batch_size, device=task.device)
        update = {
            "model": ModelOptions(backbone=task.backbone, head=head), "strategy": task.strategy,
            "strategies": {task.strategy: Strategy(phases=(phase,))},
        }  # fmt: skip
        choice = Choice("benchmark", chosen.model_copy(update=update), "")
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            for name in ("seconds", "again"):
                train_model(
                    frozen_network=network, chosen_strategy=choice,
                    splits=splits, image_transforms=transforms,
                    activations=Path(folder, "store"),
                    training_checkpoints=TrainingCheckpoints(Path(folder, "states")),
                    metric_logger=lambda metrics, epoch: None,
                )  # fmt: skip
                result[name] = time.perf_counter() - start
                if task.what != "1":
                    break
                network, _ = common.build(task.backbone, frozen, head=head)
                start = time.perf_counter()
    result.setdefault("seconds", time.perf_counter() - start)
    return result | {"peak": common.peak_mb()[0]}


def train_fastai(
    network: nn.Module,
    splits: pd.DataFrame,
    preprocessing: Preprocessing,
    phase: Phase,
    batch_size: int,
) -> None:
    """Train in place what requires gradients."""
    from fastai.vision import all as fastai

    loaders = accuracy.fastai_loaders(splits, preprocessing, True, batch_size)
    loss = fastai.CrossEntropyLossFlat()
    learner = fastai.Learner(loaders, network, loss_func=loss, metrics=fastai.accuracy)
    with learner.no_bar(), learner.no_logging():
        learner.fit_one_cycle(phase.epochs, phase.lr)


@torch.no_grad()
def peak_rate(task: argparse.Namespace) -> float:
    """Return the images a second of the fastest forward pass found of the whole network."""
    from thawline.thaw.line import split_at_thaw_line

    network, transforms = common.build(task.backbone, "head_only")
    size = transforms.preprocessing.size
    below = split_at_thaw_line(network, size).below
    assert below is not None
    dtype = torch.bfloat16
    below.to(task.device, dtype).to(memory_format=torch.channels_last)
    best = 0.0
    for count in (4, 8, 16, 32, 64) if task.device == "cpu" else (64, 256, 1024):
        images = torch.randn(count, 3, size, size, device=task.device, dtype=dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        for _ in range(6):
            start = time.perf_counter()
            below(images)
            if task.device == "cuda":
                torch.cuda.synchronize()
            best = max(best, count / (time.perf_counter() - start))
    return best


def whole_processes(arguments: argparse.Namespace, backbone: str, plain: float) -> None:
    """Print the seconds of whole processes, imports included, that train only the head."""
    print("\n| process | seconds | faster |\n| --- | --- | --- |")
    print(f"| {TUTORIAL} | {plain:.1f} | 1.0x |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("conf", "src"):
            shutil.copytree(ROOT / name, Path(temporary, name))
        shutil.copy(ROOT / "pyproject.toml", temporary)
        for views, store in (("1", "empty"), ("1", "full"), (DEFAULT_VIEWS, "empty")):
            parameters = (
                f"dataset.root={arguments.root.resolve()},model.backbone={backbone},"
                f"model.weights=none,strategy=head_only,augmentation.views_per_image={views},"
                f"training.epochs={arguments.epochs},training.batch_size={arguments.batch_size}"
            )
            command = ["kedro", "run", "--to-nodes=evaluate_model", f"--params={parameters}"]
            start = time.perf_counter()
            subprocess.run(command, cwd=temporary, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            what = f"kedro run, views: {views}, {store} store"
            print(f"| {what} | {seconds:.1f} | {plain / seconds:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
