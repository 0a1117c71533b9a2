"""Measure how fast cached activations are read, and what their index takes in memory.

    python -m benchmarks.store [--entries 1000000] [--values 1280]

Writes bfloat16 activations of random content, then reads shuffled batches with `FeatureLoader`,
as an epoch of `head_only` does. The best of three passes counts: the first may find cold pages.
Nothing is decoded or computed.
"""

from __future__ import annotations

import argparse
import gc
import logging
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks import common
from thawline.data.loading import ImageView, ViewLoader
from thawline.data.transforms import build_transforms
from thawline.networks.building import IMAGENET
from thawline.options import TransformOptions
from thawline.thaw.cache import ActivationCache
from thawline.thaw.device import Accelerator
from thawline.thaw.features import ACTIVATIONS, FeatureLoader
from thawline.thaw.line import ThawLine

BATCH = 32
ROUNDS = 3
READ = 200_000  # images per round, at most
COLUMNS = ["entries", "shards", "MB", "index, bytes per entry", "images/s"]


class Flatten(nn.Module):
    """Stands for the part below the line, which is never run here but for its fingerprint."""

    code = "benchmark"

    def __init__(self, values: int) -> None:
        """Take the number of values that cross the line."""
        super().__init__()
        self.values = values

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        """Return (N, values)."""
        return (images.flatten(1)[:, : self.values],)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[25_000, 200_000, 1_000_000])
    parser.add_argument("--values", type=int, default=1280, help="bfloat16 values of an entry")
    arguments = parser.parse_args()
    rows = [measure(entries, arguments.values) for entries in arguments.entries]
    print(common.markdown(pd.DataFrame(rows, columns=COLUMNS)))


def measure(entries: int, values: int) -> tuple[int, int, int, float, int]:
    """Return a row of the table for a cache of so many entries."""
    logging.getLogger("thawline").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        store = ActivationCache(Path(folder), max_gb=1000)
        images = [ImageView(f"{number}.jpg", f"{number:064x}") for number in range(entries)]
        _fill(store, images, values)
        gc.collect()
        tracemalloc.start()
        loader = _loader(store, values, entries)
        taken, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        files = [*Path(folder).glob("*/*.safetensors")]
        size = sum(file.stat().st_size for file in files)
        rate = max(_rate(loader, images, round_number) for round_number in range(ROUNDS))
    return entries, len(files), round(size / 1e6), round(taken / entries, 1), round(rate)


def _loader(store: ActivationCache, values: int, entries: int) -> FeatureLoader:
    transforms = build_transforms(TransformOptions(size=32), IMAGENET)
    line = ThawLine(Flatten(values), nn.Identity(), nn.Identity(), ("flatten",))
    return FeatureLoader(
        line, transforms, ViewLoader(transforms, 0), store,
        Accelerator(torch.device("cpu"), torch.bfloat16), entries,
    )  # fmt: skip


def _fill(store: ActivationCache, images: list[ImageView], values: int) -> None:
    """Write an entry for each image."""
    partition = _loader(store, values, len(images)).partition(ACTIVATIONS, images)
    noise = torch.randn(4096, values).bfloat16()
    for start in range(0, len(images), len(noise)):
        some = images[start : start + len(noise)]
        partition.add([image.key for image in some], [noise[: len(some)]])
    partition.flush()


def _rate(loader: FeatureLoader, images: list[ImageView], seed: int) -> float:
    """Return the images per second of one pass over shuffled batches."""
    order = np.random.default_rng(seed).permutation(len(images))[:READ].tolist()
    batches = [[images[i] for i in order[at : at + BATCH]] for at in range(0, len(order), BATCH)]
    start = time.perf_counter()
    for _ in loader.load(batches):
        pass
    return len(order) / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
