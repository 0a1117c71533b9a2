"""How seconds and memory grow with the number of images, from the folder to the report.

    python -m benchmarks.growth [--images 1000 10000] [--side 128] [--set strategy=all_stages]

Each number of generated JPEG files, of ten classes, is one `thawline finetune` in an empty folder.
Seconds of a node are those in the log of the run. The exponent is that of a power of the number of
images, between the two largest: 1 is linear.
"""

from __future__ import annotations

import argparse
import math
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks import common

CLASSES = 10
LINE = re.compile(r"^(\S+ \S+) INFO \S+: (Running|Completed) node: (?:report\.)?(\w+)")
MIN_SECONDS = 1  # at the largest number; what takes less is not shown


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", nargs="+", type=int, default=[1_000, 10_000, 100_000])
    parser.add_argument("--side", type=int, default=128, help="of an image, in px")
    parser.add_argument("--set", nargs="*", default=[], help="parameters by dotted name")
    arguments = parser.parse_args()
    columns = {}
    for count in track(arguments.images, "Measuring", console=Console(stderr=True)):
        with tempfile.TemporaryDirectory() as folder:
            write_images(Path(folder, "photos"), count, arguments.side)
            columns[count] = measure(Path(folder), arguments.set)
        print(common.markdown(columns[count].rename(f"{count:,}").reset_index()), flush=True)
    print("\n" + common.markdown(summarize(pd.DataFrame(columns))))


def write_images(folder: Path, count: int, side: int) -> None:
    """Write clouds in the color of their class, no two alike."""
    hues = np.random.default_rng(0).integers(0, 60, (CLASSES, 3))

    def write(idx: int) -> None:
        rng = np.random.default_rng(idx)
        clouds = rng.integers(0, 196, (12, 12, 3)) + hues[idx % CLASSES]
        image = Image.fromarray(clouds.astype(np.uint8)).resize((side, side))
        image.save(folder / str(idx % CLASSES) / f"{idx}.jpg")

    for name in range(CLASSES):
        (folder / str(name)).mkdir(parents=True)
    with ThreadPoolExecutor() as pool:
        list(pool.map(write, range(count)))


def measure(folder: Path, settings: list[str]) -> pd.Series:
    """Return the seconds of each node and of the whole command, and its peak memory in GB."""
    command = [str(Path(sys.executable).with_name("thawline")), "finetune", "photos"]
    command += [part for setting in settings for part in ("--set", setting)]
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    whole = time.perf_counter() - start
    (log,) = (folder / "thawline-runs" / "data" / "logs").iterdir()
    seconds: dict[str, float] = {}
    for line in log.read_text("utf-8").splitlines():
        if found := LINE.match(line):
            when, what, node = found.groups()
            moment = datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f").timestamp()
            seconds[node] = moment - seconds[node] if what == "Completed" else moment
    _, peak = common.peak_mb()  # of the largest of all so far, which the latest is
    return pd.Series(seconds | {"whole command": whole, "peak GB": peak / 1000})


def summarize(table: pd.DataFrame) -> pd.DataFrame:
    """Return what takes long, by the number of images, with exponents."""
    *_, before, last = table.columns if len(table.columns) > 1 else [*table.columns] * 2
    shown = table[table[last] >= MIN_SECONDS].copy()
    shown.loc["peak GB"] = table.loc["peak GB"]
    growth = math.log(int(last) / int(before)) or math.nan
    powers = np.log((shown[last] / shown[before]).to_numpy(float)) / growth
    texts = shown.map("{:.1f}".format).rename(columns="{:,}".format)
    exponents = [f"{power:.2f}" for power in powers]
    return texts.assign(exponent=exponents).reset_index(names="seconds")


if __name__ == "__main__":
    main()
