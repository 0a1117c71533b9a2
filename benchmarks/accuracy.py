"""Accuracy and time of every strategy on several data sets, beside fastai's `fine_tune`.

    python -m benchmarks.accuracy [--data hymenoptera digits] [--strategies head_only lp_ft]
        [--seeds 3] [--set training.epochs=10] [--results accuracy.jsonl]
        [--fastai --fastai-python /path/to/python]

Parameters are those of conf/base, changed by `--set`. Every training is a process of its own with
an empty cache and runs the pipelines' nodes. Seconds are those of choosing the strategy and of
training. A seed decides the splits, the new head, the order and the augmentation. With
`--results`, an interrupted table goes on: what the file has is not measured again.

fastai trains the same weights on the same splits at the same size, with all else at its defaults:
`vision_learner(...).fine_tune(5)`, batches of 64, `aug_transforms()`, flips where Thawline has
them. It is no dependency: install it beside Thawline (`pip install fastai`), or name the Python of
an environment with both.
"""

from __future__ import annotations

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
from omegaconf import OmegaConf
from scipy.stats import binomtest, t
from sklearn.metrics import f1_score

from benchmarks import common
from thawline.data.screening.screen import screen_images
from thawline.data.transforms import Preprocessing
from thawline.evaluation.predictions import predict_split
from thawline.networks.classifier import Classifier
from thawline.options import AUTO, Parameters, validate_parameters
from thawline.pipelines.data_preparation import nodes as data_preparation
from thawline.pipelines.finetune import nodes as finetune
from thawline.training.state import TrainingCheckpoints

ROOT = Path(__file__).parents[1]
SHARED = common.PHOTOGRAPHS.parent
DATA = {  # parameters by the name of a data set; any other name is a dataset.root
    "hymenoptera": [f"dataset.root={SHARED}/hymenoptera"],
    "hand_signs": [f"dataset.root={SHARED}/hand_signs"],
    "rooms": [f"dataset.root={SHARED}/rooms/rooms.csv"],
    "magnetic_tiles": [f"dataset.root={SHARED}/magnetic_tiles"],
    "cifar10": [f"dataset.root={SHARED}/cifar10"],
    "digits": ["dataset.root=sklearn:digits", "transforms.horizontal_flip=0"],
}
FASTAI = "fastai"  # in place of a strategy's name
FASTAI_EPOCHS = 5
FASTAI_BATCH = 64  # images; fewer where there are fewer, since it drops the last, smaller batch


def main() -> None:
    """Measure what the file of results lacks, and print the table."""
    known = [*read_parameters([]).strategies, AUTO]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", default=[*DATA], help="names, or any dataset.root")
    parser.add_argument("--strategies", nargs="*", choices=known, default=known)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--per-class", type=int, help="training images; the rest validates")
    parser.add_argument("--set", nargs="*", default=[], help="parameters by dotted name")
    parser.add_argument("--results", type=Path, help="JSON lines, to which results are appended")
    add_fastai_options(parser)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    check_fastai(parser, arguments)
    methods = [*arguments.strategies, *[FASTAI] * arguments.fastai]
    tasks = [
        {
            "data": data, "method": method, "seed": seed, "per_class": arguments.per_class,
            "changes": arguments.set,
        }
        for data in arguments.data for method in methods for seed in range(arguments.seeds)
    ]  # fmt: skip
    pythons = {FASTAI: arguments.fastai_python}
    rows = common.measure_tasks("benchmarks.accuracy", tasks, arguments.results, pythons)
    print(common.markdown(summarize(rows)))


def add_fastai_options(parser: argparse.ArgumentParser) -> None:
    """Add what `check_fastai` checks."""
    parser.add_argument("--fastai", action="store_true", help="measure fastai as well")
    parser.add_argument("--fastai-python", default=sys.executable, help="that imports fastai")


def check_fastai(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with an error if fastai is asked for and its Python cannot import it."""
    command = [arguments.fastai_python, "-c", "import fastai.vision.all"]
    if arguments.fastai and subprocess.run(command, capture_output=True, check=False).returncode:
        parser.error(
            f"--fastai: {arguments.fastai_python} cannot import fastai. Run `pip install fastai`,"
            " or name by --fastai-python a Python that has Thawline and fastai"
        )


def read_parameters(changes: Sequence[str]) -> Parameters:
    """Return the parameters of conf/base, changed by texts such as training.lr=0.01."""
    files = [ROOT / "conf" / "base" / f"parameters{name}.yml" for name in ("", "_strategies")]
    tree = OmegaConf.merge(*map(OmegaConf.load, files), OmegaConf.from_dotlist([*changes]))
    return validate_parameters(cast("dict[str, Any]", OmegaConf.to_container(tree)))


def summarize(results: pd.DataFrame) -> pd.DataFrame:
    """Return means over seeds, with 95 % intervals (Student's t) of the test accuracy.

    The last column is the p-value of McNemar's exact test beside the first strategy of the data.
    """
    rows = []
    for (data, method), group in results.groupby(["data", "method"], sort=False):
        of_data = results[results["data"] == data]
        first = of_data[of_data["method"] == of_data["method"].iloc[0]]
        differences = np.concatenate([*group["correct"]]) - np.concatenate([*first["correct"]])
        wins, changed = int((differences > 0).sum()), int(np.count_nonzero(differences))
        test = group["test"]
        reach = t.ppf(0.975, len(test) - 1) * test.sem() if len(test) > 1 else np.nan
        rows.append(
            {
                "data": data,
                "strategy": method,
                "validation accuracy": f"{group['validation'].mean():.4f}",
                "test accuracy": f"{test.mean():.4f}" + (f" ± {reach:.4f}" if reach >= 0 else ""),
                "macro F1": f"{group['macro_f1'].mean():.4f}",
                "seconds": f"{group['seconds'].mean():.0f}",
                "each seed": " ".join(f"{accuracy:.4f}" for accuracy in test),
                "trained": ", ".join(group["trained"].unique()),
                "p": f"{binomtest(wins, changed).pvalue:.2g}" if changed else "",
            }
        )
    return pd.DataFrame(rows)


def measure(
    data: str, method: str, seed: int, per_class: int | None, changes: list[str]
) -> dict[str, Any]:
    """Return accuracies, seconds of choosing and training, and what was trained."""
    logging.getLogger("thawline").setLevel(logging.ERROR)
    own = DATA.get(data, [f"dataset.root={data}"])
    strategy = [] if method == FASTAI else [f"strategy={method}"]
    parameters = read_parameters([*own, *changes, f"seed={seed}", *strategy])
    with tempfile.TemporaryDirectory() as folder:
        splits = make_splits(parameters, Path(folder, "images"))
        if per_class:
            splits = few(splits, per_class, seed)
        train = train_fastai if method == FASTAI else train_thawline
        predictions, seconds, trained = train(parameters, splits, Path(folder))
    truth = splits.loc[predictions.index, "label"]
    is_test = splits.loc[predictions.index, "split"] == "test"
    correct = predictions == truth
    return {
        "validation": float(correct[~is_test].mean()),
        "test": float(correct[is_test].mean()),
        "macro_f1": float(f1_score(truth[is_test], predictions[is_test], average="macro")),
        "correct": correct[is_test].astype(int).tolist(),
        "seconds": seconds,
        "trained": trained,
    }


def make_splits(parameters: Parameters, folder: Path) -> pd.DataFrame:
    """Return the splits that the pipeline makes; scikit-learn's images are written to a folder."""
    manifest, _ = data_preparation.scan_images(ROOT, folder, parameters.dataset)
    usable, _ = screen_images(manifest, parameters.screening, parameters.transforms)
    splits, _ = data_preparation.split_dataset(
        usable, parameters.dataset, parameters.screening, parameters.model, parameters.data_seed
    )
    return splits


def few(splits: pd.DataFrame, per_class: int, seed: int) -> pd.DataFrame:
    """Return the splits with so many training images a class; those left over validate."""
    rest = splits[splits["split"] != "test"].sample(
        frac=1, random_state=np.random.default_rng(seed)
    )
    chosen = rest.groupby("label").head(per_class).index
    names = splits["split"].where(splits["split"] == "test", "val")
    names[chosen] = "train"
    return splits.assign(split=names)


def train_thawline(
    parameters: Parameters, splits: pd.DataFrame, folder: Path
) -> tuple[pd.Series, float, str]:
    """Return predictions of val and test, seconds, and the strategy with its epochs."""
    classifier, seconds, trained = train_classifier(parameters, splits, folder)
    training, evaluation = parameters.training, parameters.evaluation
    predictions = [
        predict_split(classifier, splits, split, evaluation.batch_size, training, evaluation.tta)
        for split in ("val", "test")
    ]
    by_path = pd.concat(predictions).set_index("path")["prediction"]
    evaluated = splits[splits["split"] != "train"]
    return evaluated["path"].map(by_path), seconds, trained


def train_classifier(
    parameters: Parameters, splits: pd.DataFrame, folder: Path
) -> tuple[Classifier, float, str]:
    """Return the classifier, not yet calibrated, seconds, and the strategy with its epochs."""
    transforms = finetune.build_transforms(parameters)
    network, _ = finetune.build_model(parameters, splits, transforms)
    activations, states = folder / "activations", TrainingCheckpoints(folder / "states")
    start = time.perf_counter()
    choice, *_, network, transforms = finetune.choose_strategy(
        parameters, network, splits, transforms, activations
    )
    classifier, _, history, *_ = finetune.train_model(
        network, choice, splits, transforms, activations, states, ignore_metrics
    )
    return classifier, time.perf_counter() - start, f"{choice.name}, {len(history)} epochs"


def ignore_metrics(metrics: dict[str, Any], epoch: int) -> None:
    """Do nothing: nothing is tracked here."""


def train_fastai(
    parameters: Parameters, splits: pd.DataFrame, folder: Path
) -> tuple[pd.Series, float, str]:
    """Return predictions of val and test, seconds, and what was called.

    The weights are those that Thawline starts from, of a backbone of timm.
    """
    from fastai.vision import all as fastai

    transforms = finetune.build_transforms(parameters)
    weights = finetune.build_model(parameters, splits, transforms)[0].state_dict()
    fastai.set_seed(parameters.seed, reproducible=True)
    start = time.perf_counter()
    flips = parameters.transforms.horizontal_flip > 0
    loaders = fastai_loaders(splits, transforms.preprocessing, flips, FASTAI_BATCH)
    name = parameters.model.backbone.removeprefix("timm/")
    learner = fastai.vision_learner(loaders, name, pretrained=False)  # nothing is downloaded
    backbone = learner.model[0].model
    backbone.load_state_dict({name: weights[name] for name in backbone.state_dict()})
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(FASTAI_EPOCHS)
        seconds = time.perf_counter() - start
        evaluated = splits[splits["split"] != "train"]
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(evaluated))
    names = np.asarray(loaders.vocab)[probabilities.argmax(dim=1).numpy()]
    return pd.Series(names, evaluated.index), seconds, f"fine_tune({FASTAI_EPOCHS})"


def fastai_loaders(
    splits: pd.DataFrame, preprocessing: Preprocessing, flips: bool, batch_size: int
) -> Any:
    """Return fastai's loaders of training and validation images, with its own augmentation."""
    from fastai.vision import all as fastai

    seen = splits[splits["split"] != "test"].assign(is_val=lambda rows: rows["split"] == "val")
    return fastai.DataBlock(
        blocks=(fastai.ImageBlock, fastai.CategoryBlock),
        get_x=fastai.ColReader("path"),
        get_y=fastai.ColReader("label"),
        splitter=fastai.ColSplitter("is_val"),
        item_tfms=fastai.Resize(preprocessing.size),
        batch_tfms=[
            *fastai.aug_transforms(do_flip=flips),
            fastai.Normalize.from_stats(preprocessing.mean, preprocessing.std),
        ],
    ).dataloaders(seen, bs=min(batch_size, int((~seen["is_val"]).sum())))


if __name__ == "__main__":
    main()
