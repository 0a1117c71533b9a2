"""Read, split and index a manifest of millions of images, and draw batches of them.

    python -m benchmarks.manifest [rows]

The images are links to a few empty files: looking for them costs what it costs in earnest. They
and the Parquet file, which names them in random order, are made before the process that is measured
begins; a file system needs a free inode for each folder only, and about 60 bytes a name.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.progress import track

from benchmarks import common
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.options import DatasetOptions
from thawline.thaw.image_set import image_set

CLASSES = 1000
WRITTEN = 100_000  # rows at a time
BATCH, BATCHES = 256, 1000


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rows", type=int, nargs="?", default=10_000_000)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("file", nargs="?", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(Path(arguments.file))))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = write_manifest(Path(folder), arguments.rows)
        steps = common.in_a_process_of_its_own("benchmarks.manifest", arguments.rows, file)
        table = pd.DataFrame(
            steps["rows"], columns=["step", "seconds", "CPU seconds", "peak MB so far"]
        )
        print(common.markdown(table.round(1)), flush=True)  # to remove the links takes minutes


def measure(file: Path) -> dict[str, list[tuple[str, float, float, float]]]:
    """Return steps: seconds, those of a processor, and the peak resident memory so far in MB."""
    rows = [("import of all that training imports", 0.0, time.process_time(), common.peak_mb()[0])]
    clock, computing = time.perf_counter(), time.process_time()

    def note(step: str) -> None:
        nonlocal clock, computing
        took = time.perf_counter() - clock, time.process_time() - computing
        rows.append((step, *took, common.peak_mb()[0]))
        clock, computing = time.perf_counter(), time.process_time()

    splits = find_images(str(file), Path(), Path())
    note("read, look for the files, sort")
    splits = split_dataset(splits, DatasetOptions().fractions, 0)
    note("split")
    train, _ = (image_set(splits, split, torch.device("cpu")) for split in ("train", "val"))
    note("index")
    batches = train.shuffle(torch.Generator().manual_seed(0), BATCH, balanced=False, fewest=2)
    note(f"shuffle {len(train.labels):,} images")
    for batch in batches[:BATCHES]:
        train.take([batch], view=0)
    note(f"draw {BATCHES} batches of {BATCH}")
    return {"rows": rows}


def write_manifest(folder: Path, rows: int) -> Path:
    """Write a Parquet file that names so many images, in random order, and make those."""
    numbers = np.random.default_rng(0).permutation(rows).astype(np.int32)
    schema = {"path": pa.string(), "label": pa.string(), "sha256": pa.binary(32)}
    file = folder / "images.parquet"
    for label in range(CLASSES):
        (folder / f"n{label:08d}").mkdir()
    with pq.ParquetWriter(file, pa.schema(schema)) as writer:
        for batch in track(list(_batches(numbers)), "Writing the manifest", transient=True):
            labels = [f"n{number % CLASSES:08d}" for number in batch]
            paths = [f"{label}/{n}.JPEG" for label, n in zip(labels, batch, strict=True)]
            hashes = [os.urandom(32) for _ in batch]
            writer.write_table(pa.table([paths, labels, hashes], pa.schema(schema)))
            _make(folder, paths)
    return file


def _batches(numbers: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(numbers), WRITTEN):
        yield numbers[start : start + WRITTEN]


def _make(folder: Path, paths: list[str]) -> None:
    """Make an empty file, and links to it; a file may have 65,000 of them."""
    for start in range(0, len(paths), WRITTEN // 2):
        original = folder / paths[start]
        original.touch()
        for path in paths[start + 1 : start + WRITTEN // 2]:
            os.link(original, folder / path)


if __name__ == "__main__":
    main()
