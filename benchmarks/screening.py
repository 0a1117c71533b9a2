"""Screen many small JPEGs: how fast, against decoding alone, and again when nothing has changed.

    python -m benchmarks.screening [--files 50000] [--side 224]

Both decode with as many threads as there are cores; the files are in the page cache each time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from rich.progress import track
from sklearn.datasets import load_sample_images

from benchmarks import common
from thawline.data.screening.screen import screen_images
from thawline.options import ScreeningOptions


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=50_000)
    parser.add_argument("--side", type=int, default=224, help="px")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_photographs(Path(folder), arguments.files, arguments.side)
        cache = Path(folder, "screening.parquet")
        raw = seconds(lambda: decode(manifest["path"].tolist()))
        first = seconds(lambda: screen_images(manifest, ScreeningOptions(), cache=cache))
        again = seconds(lambda: screen_images(manifest, ScreeningOptions(), cache=cache))
    rows = [
        {
            "what": what,
            "seconds": f"{took:.1f}",
            "files/s": f"{len(manifest) / took:.0f}",
            "of the raw rate": f"{raw / took:.0%}",
        }
        for what, took in (("decoding alone", raw), ("screening", first), ("unchanged", again))
    ]
    print(common.markdown(pd.DataFrame(rows)))


def write_photographs(root: Path, count: int, side: int) -> pd.DataFrame:
    """Return the manifest of different pieces of two photographs, a tenth of them a class."""
    photographs = load_sample_images().images
    rng = np.random.default_rng(0)
    rows = []
    for idx in track(range(count), "Writing images", transient=True):
        pixels = photographs[idx % 2]
        top, left = (rng.integers(0, length - side + 1) for length in pixels.shape[:2])
        file = root / str(idx % 10) / f"{idx:06d}.jpg"
        file.parent.mkdir(exist_ok=True)
        piece = Image.fromarray(pixels[top : top + side, left : left + side])
        piece.save(file, quality=85, comment=str(idx))  # no two files have the same bytes
        rows.append((file.as_posix(), file.parent.name))
    return pd.DataFrame(rows, columns=["path", "label"])


def decode(paths: list[str]) -> None:
    """Decode every file at its full size."""

    def decode_one(path: str) -> None:
        with Image.open(path) as image:
            image.load()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(decode_one, paths):
            pass


def seconds(work: Callable[[], Any]) -> float:
    """Return how long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
