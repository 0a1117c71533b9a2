"""Whether memory stays flat and time linear when there are ten times as many images.

    python -m benchmarks.memory [--images 2000 20000] [--strategy freeze_to_layer3]

Each row is a process of its own that trains ResNet-18 at 128 px for two epochs on generated JPEG
files, with one view of each and an empty store.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks import common
from thawline.data.transforms import build_transforms
from thawline.networks.building import IMAGENET, build_network
from thawline.options import ModelOptions, TransformOptions
from thawline.thaw.cache import ActivationCache
from thawline.training.loop import train
from thawline.training.setup import prepare

SIZE = 128


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, nargs="*", default=[2000, 20000])
    parser.add_argument("--strategy", choices=common.PHASES, default="freeze_to_layer3")
    parser.add_argument("--one", nargs=2, metavar=("IMAGES", "STRATEGY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(int(arguments.one[0]), arguments.one[1])))
        return
    rows = [
        common.in_a_process_of_its_own("benchmarks.memory", count, arguments.strategy)
        for count in arguments.images
    ]
    print(common.markdown(pd.DataFrame(rows)))


def measure(count: int, strategy: str) -> dict[str, str]:
    """Return a row of the table."""
    with tempfile.TemporaryDirectory() as temporary:
        splits = generate(Path(temporary), count)
        model = ModelOptions(backbone="resnet18", weights="none")
        transforms = build_transforms(TransformOptions(size=SIZE), IMAGENET)
        network, _ = build_network(model, 2, SIZE, seed=0)
        phase = common.PHASES[strategy].model_copy(update={"epochs": 2})
        store = ActivationCache(Path(temporary, "store"), max_gb=100)
        before, _ = common.peak_mb()
        start = time.perf_counter()
        train(prepare(common.parameters(), network, splits, transforms, store), [phase])
        seconds = time.perf_counter() - start
        peak, decoder = common.peak_mb()
        return {
            "images": f"{count:,}",
            "MB before training": f"{before:.0f}",
            "peak MB": f"{peak:.0f}",
            "peak MB of a decoding process": f"{decoder:.0f}",
            "MB in the store": f"{store.contents()['MB'].sum():.0f}",
            "seconds": f"{seconds:.1f}",
            "seconds per 1,000 images": f"{1000 * seconds / count:.2f}",
        }


def generate(folder: Path, count: int, size: tuple[int, int] = (200, 150)) -> pd.DataFrame:
    """Return the table of splits of so many JPEG files of colored clouds, 9 in 10 for training."""

    def write(idx: int) -> str:
        rng = np.random.default_rng(idx)
        color = np.array([90, 20, 20] if idx % 2 else [20, 20, 90])
        clouds = (rng.integers(0, 166, (12, 16, 3)) + color).astype(np.uint8)
        path = folder / f"{idx}.jpg"
        Image.fromarray(clouds).resize(size, Image.Resampling.BICUBIC).save(path)
        return str(path)

    with ThreadPoolExecutor() as pool:
        paths = list(pool.map(write, range(count)))
    labels = np.arange(count) % 2
    split = np.where(np.arange(count) // 2 % 10 == 0, "val", "train")
    return pd.DataFrame({"path": paths, "class_index": labels, "split": split})


if __name__ == "__main__":
    main()
