"""How many views of each image are enough: accuracy and time over five seeds.

    python -m benchmarks.views [--strategy head_only] [--seeds 5] [--epochs 25]

The plain loop of `benchmarks.tutorial` stands in the same table. All train on the same images,
choose the best epoch by validation and are measured once on the test split.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks import common, tutorial
from thawline.networks.libraries import BUNDLED_BACKBONE
from thawline.thaw.cache import ActivationCache
from thawline.training.loop import train
from thawline.training.setup import prepare

NULL = "null"
TUTORIAL = "tutorial loop"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=common.PHOTOGRAPHS)
    parser.add_argument("--strategy", choices=common.PHASES, default="head_only")
    parser.add_argument("--views", nargs="*", default=["1", "2", "4", "8", NULL])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--no-tutorial", action="store_true", help="leave the plain loop out")
    arguments = parser.parse_args()
    rows = []
    for how in arguments.views if arguments.no_tutorial else [*arguments.views, TUTORIAL]:
        results = [
            measure(arguments, how, seed)
            for seed in track(range(arguments.seeds), how, console=Console(stderr=True))
        ]
        accuracies, seconds = zip(*results, strict=True)
        rows.append(
            {
                "views": how,
                "test accuracy": f"{np.mean(accuracies):.4f}",
                "standard deviation": f"{np.std(accuracies, ddof=1):.4f}",
                "each seed": " ".join(f"{a:.4f}" for a in accuracies),
                "seconds": f"{np.mean(seconds):.1f}",
            }
        )
        print(common.markdown(pd.DataFrame(rows[-1:])), flush=True)
    print("\n" + common.markdown(pd.DataFrame(rows)))


def measure(arguments: argparse.Namespace, how: str, seed: int) -> tuple[float, float]:
    """Return test accuracy, and the seconds of training with an empty store."""
    splits = common.photographs(arguments.root, seed)
    network, transforms = common.build(BUNDLED_BACKBONE, arguments.strategy, seed)
    phase = common.PHASES[arguments.strategy].model_copy(update={"epochs": arguments.epochs})
    start = time.perf_counter()
    if how == TUTORIAL:
        tutorial.train(
            network, splits, transforms.preprocessing, phase.lr, phase.epochs,
            arguments.batch_size, seed,
        )  # fmt: skip
    else:
        with tempfile.TemporaryDirectory() as folder:
            views = None if how == NULL else int(how)
            chosen = common.parameters(views, seed, batch_size=arguments.batch_size)
            cache = ActivationCache(Path(folder), max_gb=10)
            setup = prepare(chosen, network, splits, transforms, cache)
            result = train(setup, [phase])
        network.load_state_dict(result.best)
    seconds = time.perf_counter() - start
    loaders = tutorial.data_loaders(splits, transforms.preprocessing, arguments.batch_size)
    return tutorial.measure(network, loaders["test"]), seconds


if __name__ == "__main__":
    main()
