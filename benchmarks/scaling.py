"""Predict how long fine-tuning takes on any number of workers, from the rates of its stages.

    python -m benchmarks.scaling                     # measure here, and hold the prediction to runs
    python -m benchmarks.scaling --plan [--decode 300 --below 3000 --above 1000 …]

Images are decoded on CPU cores; what is frozen runs once, what is above the thaw line in every
epoch. Stages overlap, so the slowest sets the pace; without a GPU all of them share the cores.
`--plan` takes the rates of a GPU as given, since it is to be run anywhere: images/s of the whole
network without gradients (below) and with them (above), and GB/s between machines.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import common
from benchmarks.screening import write_photographs
from thawline.data.loading import ImageView, ViewLoader
from thawline.data.splitting import split_dataset
from thawline.options import DatasetOptions, EngineOptions, Phase
from thawline.thaw.cache import ActivationCache
from thawline.thaw.device import keep_freed_memory
from thawline.thaw.frozen_part import CPU_CHUNK_SIZE
from thawline.thaw.line import split_at_thaw_line
from thawline.training import ray_cluster, ray_engine
from thawline.training.data_parallel import wrap_for_workers

BACKBONE = "timm/tf_efficientnet_lite0"
BATCH = 32  # images, of all workers together
VIEWS = 4  # as augmentation.views_per_image
ACTIVATION = 4 * 1280  # bytes of an image before the head
PARAMETERS = 3.4e6
ROUNDS = {"decode": 100, "below": 30, "full": 10, "full_forward": 10, "read": 1}


class Work(NamedTuple):
    """What one image costs a worker in each stage, in core-seconds or GPU-seconds."""

    decode: float
    below: float
    above: float
    read: float


def pipeline_seconds(work: Work, images: float, workers: int, cores: float, gpu: bool) -> float:
    """Return how long so many images take that pass through stages which overlap.

    Args:
        work: seconds an image; 0 for a stage that it does not pass through.
        images: in all.
        workers: that share them, each one thread, or one GPU.
        cores: that decode, and that compute as well where there is no GPU.
        gpu: whether the network runs beside the cores.
    """
    network = work.below + work.above
    on_cores = work.decode + work.read + (0 if gpu else network)
    return images * max(network / workers, on_cores / cores)


def main() -> None:
    """Print the table that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plan", action="store_true", help="the costs of large data sets")
    parser.add_argument("--below", type=float, default=3000, help="images/s of a GPU, no gradients")
    parser.add_argument(
        "--above", type=float, default=1000, help="images/s of a GPU, full training"
    )
    parser.add_argument("--network", type=float, default=10, help="GB/s between machines")
    parser.add_argument("--decode", type=float, default=300, help="images/s a core")
    parser.add_argument("--cores", type=float, default=16, help="cores for each GPU")
    parser.add_argument("--disk", type=float, default=2, help="GB/s for every 8 GPUs")
    parser.add_argument("--file", type=float, default=100, help="kB of an image file")
    parser.add_argument("--images", type=int, default=768, help="of the runs that are measured")
    parser.add_argument("--stages", nargs="*", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stages:
        path, workers, rank, *stages = arguments.stages
        print(json.dumps(measure(Path(path), int(workers), int(rank), stages)))
    elif arguments.plan:
        print(common.markdown(plan(arguments)))
    else:
        with tempfile.TemporaryDirectory() as folder:
            for table in compare_with_runs(Path(folder), arguments.images):
                print(common.markdown(table), end="\n\n")


def compare_with_runs(folder: Path, images: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rates, and seconds of runs with 1 and 2 workers beside those they predict."""
    splits = photographs(folder, images)
    counts = splits["split"].value_counts()
    rates, rows = [], []
    for workers in (1, 2):
        before = measure_stages(workers, folder)
        measured = {
            f"frozen part of {VIEWS} views": fill_seconds(
                splits, folder / f"fill{workers}", workers
            ),
            "an epoch of full": epoch_seconds(splits, folder / f"full{workers}", workers),
        }
        # Before and after, since the speed of a shared machine changes by the minute.
        work = (before + measure_stages(workers, folder)) / 2
        rates.append((1 / work).round(1).rename(f"images/s of each, {workers} at once"))
        fill = Work(work["decode, all cores"], work["below, all cores"], 0, 0)
        predicted = {
            f"frozen part of {VIEWS} views": pipeline_seconds(
                fill, views_of(splits), workers, os.cpu_count() or 1, gpu=False
            ),
            "an epoch of full": (
                counts["train"] * work["full"]
                + counts["val"] * work["full_forward"]
                + images * work["read"]
            )
            / workers,
        }
        rows += [
            {
                "workers": workers,
                "what": what,
                "predicted, s": f"{predicted[what]:.1f}",
                "measured, s": f"{measured[what]:.1f}",
                "predicted / measured": f"{predicted[what] / measured[what]:.2f}",
            }
            for what in predicted
        ]
    return pd.concat(rates, axis=1).rename_axis("stage").reset_index(), pd.DataFrame(rows)


def plan(given: argparse.Namespace) -> pd.DataFrame:
    """Return what a million and a hundred million images cost, and which stage sets the pace.

    Of `head_only` each of 4 views is decoded and computed once, and 25 epochs read 1280 numbers of
    4 bytes an image. Of `full` 10 epochs decode and compute anew: its views would not fit the disk.
    """
    rows = []
    for images in (1e6, 1e8):
        for gpus in (1, 8, 64):
            cores, disks = gpus * given.cores, given.disk * 1e9 * max(1, gpus / 8)
            files = given.file * 1e3 * images / disks
            steps = images / (256 * gpus)  # 256 images a worker
            reduce = 2 * 4 * PARAMETERS / (given.network * 1e9) * steps if gpus > 1 else 0
            head = {
                "files": VIEWS * files,
                "decode": VIEWS * images / given.decode / cores,
                "below": VIEWS * images / given.below / gpus,
            }
            read = 25 * images * ACTIVATION / disks
            whole = {
                "files": 10 * files,
                "decode": 10 * images / given.decode / cores,
                "above": 10 * images / given.above / gpus,
            }
            for name, stages, rest in (
                ("head_only", head, {"activations": read}),
                ("full", whole, {"exchange": 10 * reduce}),
            ):
                total = max(stages.values()) + sum(rest.values())
                every = stages | rest
                rows.append(
                    {
                        "images": f"{images / 1e6:.0f} million",
                        "strategy": name,
                        "GPUs": gpus,
                        "stages": ", ".join(f"{n} {duration(t)}" for n, t in every.items()),
                        "in all": duration(total),
                        "GPU-hours": f"{total * gpus / 3600:.1f}",
                        "bottleneck": max(every, key=lambda stage: every[stage]),
                    }
                )
    return pd.DataFrame(rows)


def duration(seconds: float) -> str:
    """Return seconds in a unit that fits."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def photographs(folder: Path, images: int) -> pd.DataFrame:
    """Return the splits of so many made-up photographs of 256 px, 128 of them for validation."""
    (folder / "images").mkdir()
    manifest = write_photographs(folder / "images", images, 256)
    splits = split_dataset(manifest, DatasetOptions().fractions, seed=0)
    splits["class_index"] %= 2  # which does not matter, as long as the head has it
    splits["split"] = "train"
    splits.loc[splits.groupby("label").head(13).index, "split"] = "val"
    return splits


def measure_stages(workers: int, folder: Path) -> pd.Series:
    """Return the seconds that each stage takes a worker for an image, beside the other workers.

    What makes the frozen part of images keeps all cores busy whatever the number of workers.
    """
    seconds = in_processes(workers, folder, list(ROUNDS))
    on_all = in_processes(os.cpu_count() or 1, folder, ["decode", "below"])
    return pd.concat([seconds, on_all.add_suffix(", all cores")])


def in_processes(count: int, folder: Path, stages: list[str]) -> pd.Series:
    """Return the seconds for an image of each stage, in several processes at once."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--stages", str(folder), str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen([*command, str(rank), *stages], stdout=subprocess.PIPE, env=environment)
        for rank in range(count)
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]
    (folder / "meeting").unlink()
    return pd.DataFrame(found).mean()


def measure(folder: Path, workers: int, rank: int, stages: list[str]) -> dict[str, float]:
    """Return the seconds that stages take for an image in this process, one of so many."""
    keep_freed_memory()  # as training does
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/meeting", rank=rank, world_size=workers
    )
    seconds = {}
    for stage in stages:
        torch.distributed.barrier()
        seconds[stage] = seconds_of(stage, folder, BATCH // workers)
    return seconds


def seconds_of(stage: str, folder: Path, batch: int) -> float:
    """Return the seconds that a stage takes for an image, in batches of so many."""
    network, transforms = common.build(BACKBONE, "head_only" if stage == "below" else "full")
    network.to(memory_format=torch.channels_last)
    size = transforms.preprocessing.size
    batch = CPU_CHUNK_SIZE if stage == "below" else batch
    images = torch.randn(batch, 3, size, size).to(memory_format=torch.channels_last)
    if stage == "decode":
        paths = itertools.cycle(sorted(map(str, (folder / "images").rglob("*.jpg"))))
        batches = [
            [ImageView(next(paths), "", n) for n in range(CPU_CHUNK_SIZE)]
            for _ in range(2 * ROUNDS[stage])
        ]
        views = ViewLoader(transforms, workers=1).load(batches)
        return timed(lambda: next(views), CPU_CHUNK_SIZE, stage)
    if stage == "read":
        return 3 * size**2 / ActivationCache(folder / "probe", 1).bytes_per_second()
    if stage == "below":
        below = split_at_thaw_line(network, size).below
        assert below is not None
        return timed(torch.no_grad()(lambda: below(images)), batch, stage)
    if stage == "full_forward":
        network.eval()
        return timed(torch.no_grad()(lambda: network(images)), batch, stage)
    optimizer = torch.optim.AdamW(network.parameters())
    network = wrap_for_workers(network, sync_batch_norm=False)
    labels = torch.zeros(batch, dtype=torch.long)

    def step() -> None:
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return timed(step, batch, stage)


def fill_seconds(splits: pd.DataFrame, folder: Path, workers: int) -> float:
    """Return how long the frozen part takes for all views, without what it takes to begin."""
    phase = Phase(trainable={"last": 1}, epochs=VIEWS, lr=0.01)
    given = arguments_of(splits, folder, "head_only", VIEWS, connected(workers))
    arguments = ray_engine.worker_arguments(given)
    scaling = ray_cluster.divide(arguments[0].engine, arguments[0].training.device)
    ray_cluster.compute_activations(arguments, phase, scaling)
    files = [path.stat() for path in folder.rglob("*.safetensors")]
    times, sizes = np.array(sorted((file.st_mtime, file.st_size) for file in files)).T
    written = sizes.cumsum() / sizes.sum()
    each = 1 / ray_cluster.TASKS_PER_WORKER / workers  # of the whole; from then on all are at work
    begun = int(np.searchsorted(written, (workers - 0.5) * each))
    return float((times[-1] - times[begun]) / (1 - written[begun]))


def views_of(splits: pd.DataFrame) -> int:
    """Return the views of all images, of which validation has one each."""
    counts = splits["split"].value_counts()
    return int(VIEWS * counts["train"] + counts["val"])


def epoch_seconds(splits: pd.DataFrame, folder: Path, workers: int) -> float:
    """Return how long an epoch of full fine-tuning takes whose images are all decoded already."""
    phase = Phase(trainable="all", epochs=4, lr=0.001)
    arguments = arguments_of(splits, folder, "full", 1, connected(workers))
    result = ray_engine.train(arguments, [phase])
    return float(result.history["seconds"].iloc[1:].mean())


ENGINE = EngineOptions(name="ray")


def connected(workers: int) -> EngineOptions:
    """Return the engine with so many workers, to which this process is connected."""
    engine = ENGINE.model_copy(update={"workers": workers})
    ray_cluster.connect(engine)
    return engine


def arguments_of(
    splits: pd.DataFrame, folder: Path, strategy: str, views: int, engine: EngineOptions
) -> ray_cluster.Arguments:
    """Return the arguments of `setup.prepare`."""
    network, transforms = common.build(BACKBONE, strategy)
    chosen = common.parameters(views, precision="fp32", batch_size=BATCH)
    chosen = chosen.model_copy(update={"engine": engine})
    return chosen, network, splits, transforms, ActivationCache(folder, 10)


def timed(function: Callable[[], Any], images: int, stage: str) -> float:
    """Return the seconds an image that a function takes, after the first slow rounds."""
    rounds = ROUNDS[stage]
    for _ in range(rounds // 2):
        function()
    start = time.perf_counter()
    for _ in range(rounds):
        function()
    return (time.perf_counter() - start) / rounds / images


if __name__ == "__main__":
    logging.getLogger("thawline").setLevel(logging.WARNING)
    main()
