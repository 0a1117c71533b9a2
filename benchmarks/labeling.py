"""Whether images chosen by `thawline review --unlabeled` need fewer labels than random ones.

    python -m benchmarks.labeling [--root ../shared/data/cifar10] [--seeds 5]

Of the training images, 100 are labeled at the start and 50 more in each round, by the ranking of
the review or at random. After each round, a logistic regression on features of the last layer is
fitted to what is labeled, and its accuracy on the test images is measured.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from benchmarks import common
from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.evaluation.image_map import rank_unlabeled, reduce_features
from thawline.options import DatasetOptions

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10"
START, ROUND, MAX_LABELED = 100, 50, 600


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=CIFAR)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    manifest = find_images(str(arguments.root), arguments.root, arguments.root)
    splits = split_dataset(manifest, DatasetOptions().fractions, seed=0)
    features = common.pretrained_features(splits["path"].tolist())
    curves = {
        (seed, way): label(splits, features.numpy(), way, seed)
        for seed in range(arguments.seeds)
        for way in ("random", "ranked")
    }
    table = pd.DataFrame(curves).T
    table.index.names = ["seed", "way"]
    ranked, random = (table.xs(way, level="way") for way in ("ranked", "random"))
    gains = pd.DataFrame(ranked) - pd.DataFrame(random)
    error = gains.std() / np.sqrt(len(gains))
    means = table.groupby("way").mean().T
    rows = means.assign(gain=gains.mean(), standard_error=error).round(3)
    print(common.markdown(rows.reset_index(names="labels").map(str)))
    of_seeds = gains.to_numpy().mean(axis=1)
    spread = of_seeds.std(ddof=1) / np.sqrt(len(of_seeds))
    print(f"\nmean gain {of_seeds.mean():.4f}, standard error {spread:.4f}")


def label(splits: pd.DataFrame, features: np.ndarray, way: str, seed: int) -> dict[int, float]:
    """Return the test accuracy by the number of labels."""
    labels = splits["class_index"].to_numpy()
    test = np.flatnonzero(splits["split"] == "test")
    pool = np.random.default_rng(seed).permutation(np.flatnonzero(splits["split"] != "test"))
    components = reduce_features(features)
    known, rest = [*pool[:START]], [*pool[START:]]
    accuracies = {}
    while len(known) <= MAX_LABELED:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=1000))
        with threadpool_limits(1):
            model.fit(features[known], labels[known])
            right = model.predict(features[test]) == labels[test]
            probabilities = model.predict_proba(features[rest])
        accuracies[len(known)] = float(right.mean())
        chosen = [*range(ROUND)]
        if way == "ranked":
            chosen = rank_unlabeled(components[rest], components[known], probabilities, ROUND)
        known += [rest[idx] for idx in chosen]
        rest = [row for idx, row in enumerate(rest) if idx not in {*chosen}]
    return accuracies


if __name__ == "__main__":
    main()
