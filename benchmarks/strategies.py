"""Test accuracy, time and trained parameters of every strategy over five seeds.

    python -m benchmarks.strategies [--strategies head_only lp_ft] [--seeds 5] [--per-class 50]
        [--set transforms.size=256 training.ema_decay=0.99]

Options are those of conf/base, changed by `--set`. Every row starts with an empty store, chooses
the best epoch by validation, and measures the test split once.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from scipy.stats import t

from benchmarks import common
from thawline.data.splitting import class_names
from thawline.data.transforms import build_transforms
from thawline.evaluation.predictions import predict_split
from thawline.evaluation.significance import effective_images
from thawline.networks.building import build_network, pretrained_preprocessing
from thawline.networks.classifier import Classifier
from thawline.options import AUTO, Parameters, validate_parameters
from thawline.thaw.cache import ActivationCache
from thawline.thaw.probing import choose_strategy
from thawline.training.loop import train
from thawline.training.setup import prepare

CONF = Path(__file__).parents[1] / "conf" / "base"
PROBE = "auto (probe)"


def main() -> None:
    """Measure and print the table."""
    parameters = read_parameters([])
    known = [*parameters.strategies, AUTO, PROBE]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--root", type=Path, default=common.PHOTOGRAPHS)
    parser.add_argument("--strategies", nargs="*", choices=known, default=known)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--per-class", type=int, help="training images; the rest validates")
    parser.add_argument("--set", nargs="*", default=[], help="parameters by dotted name")
    arguments = parser.parse_args()
    parameters = read_parameters(arguments.set)
    rows = []
    for strategy in arguments.strategies:
        results = pd.DataFrame(
            measure(strategy, seed, parameters, arguments.root, arguments.per_class)
            for seed in track(range(arguments.seeds), strategy, console=Console(stderr=True))
        )
        accuracies = results["accuracy"]
        reach = t.ppf(0.975, len(accuracies) - 1) * accuracies.sem() if len(accuracies) > 1 else 0
        rows.append(
            {
                "strategy": strategy,
                "test accuracy": f"{accuracies.mean():.4f} ± {reach:.4f}",
                "validation": f"{results['validation'].mean():.4f}",
                "each seed": " ".join(f"{accuracy:.4f}" for accuracy in accuracies),
                "seconds": f"{results['seconds'].mean():.0f}",
                "epochs": " ".join(map(str, sorted(results["epochs"].unique()))),
                "trained parameters": " ".join(
                    f"{n:,}" for n in sorted(results["trained"].unique())
                ),
            }
        )
        print(common.markdown(pd.DataFrame(rows[-1:])), flush=True)
    print("\n" + common.markdown(pd.DataFrame(rows)))


def read_parameters(changes: list[str]) -> Parameters:
    """Return the parameters of conf/base, changed by texts such as training.lr=0.01."""
    files = (CONF / "parameters.yml", CONF / "parameters_strategies.yml")
    tree = OmegaConf.merge(*map(OmegaConf.load, files), OmegaConf.from_dotlist(changes))
    return validate_parameters(cast("dict[str, Any]", OmegaConf.to_container(tree)))


def measure(
    strategy: str, seed: int, parameters: Parameters, root: Path, per_class: int | None
) -> dict[str, Any]:
    """Return test accuracy, seconds of choosing and training, epochs, and parameters trained."""
    splits = common.photographs(root, seed)
    if per_class:
        splits = few(splits, per_class, seed)
    model = parameters.model
    if strategy in parameters.strategies:
        weights = parameters.strategies[strategy].weights or model.weights
        model = model.model_copy(update={"weights": weights})
    options, augmentation = parameters.transforms, parameters.augmentation
    transforms = build_transforms(options, pretrained_preprocessing(model), seed, augmentation)
    names = class_names(splits)
    network, _ = build_network(model, len(names), transforms.preprocessing.size, seed, names)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if strategy == PROBE:
            auto = parameters.auto.model_copy(update={"by": "probe"})
            strategy, parameters = AUTO, parameters.model_copy(update={"auto": auto})
        cache = ActivationCache(Path(folder), parameters.activations.max_gb)
        choice, _ = choose_strategy(
            parameters.model_copy(update={"strategy": strategy, "seed": seed}),
            network,
            splits,
            transforms,
            effective_images,
            cache,
        )
        chosen = parameters.model_copy(update={"seed": seed})
        setup = prepare(chosen, network, splits, transforms, cache)
        result = train(setup, choice.strategy.phases)
    seconds = time.perf_counter() - start
    network.load_state_dict(result.best)
    classifier = Classifier(network, names, transforms.preprocessing, model)
    size, tta = parameters.evaluation.batch_size, parameters.evaluation.tta
    predictions = predict_split(classifier, splits, "test", size, parameters.training, tta)
    return {
        "accuracy": float((predictions["prediction"] == predictions["label"]).mean()),
        "validation": float(result.history["val_accuracy"].max()),
        "seconds": seconds,
        "epochs": len(result.history),
        "trained": int(result.history["trainable_parameters"].max()),
    }


def few(splits: pd.DataFrame, per_class: int, seed: int) -> pd.DataFrame:
    """Return the splits with so many training images a class; those left over validate."""
    rest = splits[splits["split"] != "test"].sample(
        frac=1, random_state=np.random.default_rng(seed)
    )
    chosen = rest.groupby("label").head(per_class).index
    names = splits["split"].where(splits["split"] == "test", "val")
    names[chosen] = "train"
    return splits.assign(split=names)


if __name__ == "__main__":
    main()
