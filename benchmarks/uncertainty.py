"""Whether trained classifiers know how sure they are, and refuse images of another kind.

    python -m benchmarks.uncertainty [--data hymenoptera hand_signs] [--seeds 5]
        [--set strategy=auto] [--results uncertainty.jsonl]

Each classifier is trained and calibrated by the pipelines' nodes, with the parameters of conf/base
and `strategy=all_stages`, in a process of its own. Calibration and prediction sets are measured on
its test split. Then it is asked images that it was not trained for: 200 of every other data set, 50
of noise, and black and white ones. With `--results`, an interrupted table goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from scipy.stats import ttest_1samp
from sklearn.metrics import roc_auc_score

from benchmarks import common
from benchmarks.accuracy import DATA, make_splits, read_parameters, train_classifier
from thawline.evaluation.calibration import log_likelihood, measure_sets, with_temperature
from thawline.evaluation.predictions import predict_files, predict_split
from thawline.evaluation.significance import SIGNIFICANT, accuracy_interval
from thawline.options import ServingOptions
from thawline.pipelines.finetune import nodes as finetune

ASKED = 200  # images of another data set
NOISE = 50
COVERAGE = ServingOptions().coverage
SIDE = 224  # px, of noise and of images of one color


def main() -> None:
    """Measure what the file of results lacks, and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", choices=[*DATA], default=[*DATA])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="parameters by dotted name")
    parser.add_argument("--results", type=Path, help="JSON lines, to which results are appended")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(**json.loads(arguments.one))))
        return
    tasks = [
        {"data": data, "seed": seed, "changes": arguments.set}
        for data in arguments.data for seed in range(arguments.seeds)
    ]  # fmt: skip
    rows = common.measure_tasks("benchmarks.uncertainty", tasks, arguments.results)
    print(common.markdown(summarize(rows)), end="\n\n")
    print(common.markdown(summarize_others(rows)))


def measure(data: str, seed: int, changes: list[str]) -> dict[str, Any]:
    """Return what a classifier says of its test images and of images of other kinds."""
    own = [*DATA[data], "strategy=all_stages", *changes, f"seed={seed}"]
    parameters = read_parameters(own)
    size, training = parameters.evaluation.batch_size, parameters.training
    with tempfile.TemporaryDirectory() as folder:
        splits = make_splits(parameters, Path(folder, "images"))
        classifier, *_ = train_classifier(parameters, splits, Path(folder))
        activations = Path(folder, "activations")
        classifier = finetune.calibrate_classifier(parameters, classifier, splits, activations)
        calibration = classifier.calibration
        test = predict_split(classifier, splits, "test", size, training)
        others = {
            name: predict_files(classifier, paths, size, 1, training)
            for name, paths in other_images(data, Path(folder)).items()
        }
    groups = test.get("group", test["path"])
    before = test
    if calibration.temperature != 1:
        before = with_temperature(test, 1 / calibration.temperature)
    gains = pd.Series(log_likelihood(test) - log_likelihood(before)).groupby(groups).sum()
    covered = measure_sets(test, np.array(calibration.max_scores))
    distances = test["distance"].to_numpy()
    return {
        "temperature": calibration.temperature,
        "nll": float(-log_likelihood(test).mean()),
        "nll_before": float(-log_likelihood(before).mean()),
        "worse": bool(ttest_1samp(gains, 0, alternative="less").pvalue < SIGNIFICANT),
        "better": bool(ttest_1samp(gains, 0, alternative="greater").pvalue < SIGNIFICANT),
        "covered": float(covered["covered"].mean()),
        "interval": accuracy_interval(covered["covered"].to_numpy(), groups),
        "size": float(covered["size"].mean()),
        "refused": float((distances > calibration.max_distance).mean()),
        "images": len(test),
        "others": {
            name: {
                "auroc": float(
                    roc_auc_score(
                        np.repeat([False, True], [len(distances), len(table)]),
                        np.concatenate([distances, table["distance"]]),
                    )
                ),
                "refused": float((table["distance"] > calibration.max_distance).mean()),
            }
            for name, table in others.items()
        },
    }


def other_images(data: str, folder: Path) -> dict[str, list[str]]:
    """Return image files by their kind: other data sets, noise, and one color."""
    found = {}
    for name in set(DATA) - {data}:
        splits = make_splits(read_parameters(DATA[name]), folder / name)
        found[name] = splits["path"].sample(ASKED, random_state=0).tolist()
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8) for _ in range(NOISE)]
    plain = [np.full((SIDE, SIDE, 3), gray, dtype=np.uint8) for gray in (0, 255)]
    for name, pictures in (("noise", noise), ("black and white", plain)):
        found[name] = [str(folder / f"{name} {idx}.png") for idx in range(len(pictures))]
        for path, pixels in zip(found[name], pictures, strict=True):
            Image.fromarray(pixels).save(path)
    return found


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """Return calibration and prediction sets, one row per data set."""
    table = []
    for data, own in rows.groupby("data", sort=False):
        inside = [low <= COVERAGE <= high for low, high in own["interval"]]
        gains = np.sign(own["nll_before"] - own["nll"])
        table.append(
            {
                "data": data,
                "temperature": f"{own['temperature'].min():.2f} to {own['temperature'].max():.2f}",
                "NLL before": f"{own['nll_before'].mean():.3f}",
                "NLL": f"{own['nll'].mean():.3f}",
                "better, equal, worse": " ".join(str((gains == sign).sum()) for sign in (1, 0, -1)),
                "beyond chance better, worse": f"{own['better'].sum()} {own['worse'].sum()}",
                "coverage": " ".join(f"{share:.3f}" for share in own["covered"]),
                f"{COVERAGE} in its interval": sum(inside),
                "classes per set": f"{own['size'].mean():.2f}",
                "test images refused": f"{own['refused'].mean():.1%}",
            }
        )
    return pd.DataFrame(table)


def summarize_others(rows: pd.DataFrame) -> pd.DataFrame:
    """Return AUROC and refused share by what a classifier was trained on, and what it is asked."""
    table = []
    for data, own in rows.groupby("data", sort=False):
        cells = {"trained on": data}
        for name in [*DATA, "noise", "black and white"]:
            found = [other[name] for other in own["others"] if name in other]
            aurocs, refused = ([each[key] for each in found] for key in ("auroc", "refused"))
            cells[name] = f"{np.mean(aurocs):.3f}, {np.mean(refused):.0%}" if found else ""
        table.append(cells)
    return pd.DataFrame(table)


if __name__ == "__main__":
    main()
