"""How often drift is found where there is some, and where there is none.

    python -m benchmarks.drift [--root ../shared/data/hand_signs] [--images 200]

Features are those of the last layer of the pretrained network, and labels stand for predicted
classes. Without drift, two halves of the data set are compared, 200 times; each kind of drift is
looked for in 20 draws.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance
from scipy.stats import kstest
from torch.nn.functional import normalize

from benchmarks import common
from thawline.data.decoding import read_image
from thawline.data.sources import find_images
from thawline.evaluation.drift import combine, compare_classes, compare_features

ROOT = Path(__file__).parents[2] / "shared" / "data" / "hand_signs"
LEVEL = 0.05
NULL_DRAWS, DRAWS = 200, 20


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--images", type=int, default=200, help="on either side")
    arguments = parser.parse_args()
    manifest = find_images(str(arguments.root), arguments.root, arguments.root)
    labels, count = manifest["label"].to_numpy(), arguments.images
    plain = read_features(manifest["path"].tolist())
    changed = {name: read_changed(manifest, change) for name, change in CHANGES.items()}
    halves = [
        compare(plain, labels, plain, labels, *draw(len(labels), seed, count), seed)
        for seed in range(NULL_DRAWS)
    ]
    rows = [
        ("none: two halves", f"{np.mean(np.array(halves)[:, 1] < LEVEL):.1%}", NULL_DRAWS,
         f"{kstest(np.array(halves)[:, 0], 'uniform').pvalue:.2f}")
    ]  # fmt: skip
    for name, features in changed.items():
        found = [
            compare(plain, labels, features, labels, *draw(len(labels), seed, count), seed)[1]
            for seed in range(DRAWS)
        ]
        rows.append((name, f"{sum(np.array(found) < LEVEL)} of {DRAWS}", DRAWS, ""))
    for name, side in (("a class is missing", 1), ("a class is new", 0)):
        found = []
        for seed in range(DRAWS):
            sides = [*draw(len(labels), seed, count)]
            absent = np.unique(labels)[seed % len(np.unique(labels))]
            sides[side] = sides[side][labels[sides[side]] != absent]
            one, other = sides
            found.append(compare(plain, labels, plain, labels, one, other, seed)[1])
        rows.append((name, f"{sum(np.array(found) < LEVEL)} of {DRAWS}", DRAWS, ""))
    columns = ["drift", f"p < {LEVEL}", "draws", "p-values of features uniform (p, Kolmogorov)"]
    print(common.markdown(pd.DataFrame(rows, columns=columns)))


def draw(images: int, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return positions of two sets of different images."""
    order = np.random.default_rng(seed).permutation(images)
    return order[:count], order[count : 2 * count]


def compare(
    before: np.ndarray, old: np.ndarray, now: np.ndarray, new: np.ndarray, one: np.ndarray,
    other: np.ndarray, seed: int,
) -> tuple[float, float]:  # fmt: skip
    """Return the p-values of the features and of all, for positions on either side."""
    groups = [*one, *(len(before) + other)]
    p_features = compare_features(before[one], now[other], groups, seed)
    names = sorted({*old, *new})
    return p_features, combine(p_features, compare_classes(old[one], new[other], names, None))


def read_features(paths: list[str]) -> np.ndarray:
    """Return features of the last layer (N, D), of length 1."""
    return normalize(common.pretrained_features(paths)).numpy()


def read_changed(manifest: pd.DataFrame, change: Callable[[Image.Image, Path], None]) -> np.ndarray:
    """Return the features of changed images."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{idx}.png") for idx in range(len(manifest))]
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda a, b: change(read_image(a), b), manifest["path"], paths))
        return read_features([*map(str, paths)])


def brighten(image: Image.Image, path: Path) -> None:
    """Save a brighter image."""
    ImageEnhance.Brightness(image).enhance(1.15).save(path)


def compress(image: Image.Image, path: Path) -> None:
    """Save an image with artifacts of compression."""
    image.save(path, "jpeg", quality=20)


CHANGES = {"brightness + 15 %": brighten, "JPEG quality 20": compress}


if __name__ == "__main__":
    main()
