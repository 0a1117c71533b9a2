"""Compute the golden records: numbers that no refactoring may change.

`python -m golden.records` in tests/ writes them anew. Whoever does so says in the commit message
which of them moved, and why.
"""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the tests have it

import numpy as np
import pandas as pd
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from thawline.data.sources import find_images
from thawline.data.splitting import split_dataset
from thawline.data.transforms import build_transforms
from thawline.evaluation.significance import paired_test
from thawline.networks.building import IMAGENET, build_network, pretrained_preprocessing
from thawline.options import (
    AugmentationOptions,
    CompareOptions,
    ModelOptions,
    Parameters,
    Phase,
    Strategy,
    TrainingOptions,
    TransformOptions,
    validate_parameters,
)
from thawline.sweep.study import study_fingerprint
from thawline.thaw.cache import ActivationCache
from thawline.training.loop import train
from thawline.training.setup import prepare

ROOT = Path(__file__).parents[2]
RECORDS = Path(__file__).with_name("records.json")
SMALL_NET = ModelOptions(backbone="helpers.networks:SmallNet", weights="none")
LITE0 = ModelOptions()
FP32 = TrainingOptions(
    optimizer="sgd", batch_size=16, device="cpu", precision="fp32", num_workers=0, warmup_ratio=0
)
HEAD = Phase(trainable={"last": 1}, epochs=2, lr=0.005)
PARAMETERS = Parameters(
    strategy="head_only",
    strategies={"head_only": Strategy(phases=[HEAD])},
    compare=CompareOptions(strategies=("head_only",)),
    augmentation=AugmentationOptions(views_per_image=1),
    training=FP32,
)
ALL = Phase(trainable="all", epochs=2, lr=0.02, lr_decay=0.5)
# Batch norm of 16 small images in training would multiply rounding beyond what is compared.
CALM = Phase(trainable="all", epochs=2, lr=0.002, lr_decay=0.5, batch_norm="eval")


def write_digits(folder: Path, images_per_class: int) -> Path:
    """Write some of scikit-learn's digits as PPM, whose bytes no library's version changes."""
    digits = load_digits()
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
        for idx in np.flatnonzero(digits.target == label)[:images_per_class]:
            gray = (digits.images[idx] * (255 / 16)).round().astype(np.uint8)
            Image.fromarray(gray).convert("RGB").save(folder / str(label) / f"{idx:04d}.ppm")
    return folder


def fixed_splits(folder: Path) -> pd.DataFrame:
    """Return splits of the digits in a folder that do not depend on how Thawline splits."""
    splits = find_images(str(folder), folder, folder)
    number = splits.groupby("label").cumcount()
    splits["class_index"] = splits["label"].astype("int64")
    splits["split"] = np.select([number < 4, number < 6], ["train", "val"], "test")
    return splits


def losses_of_steps(
    model: ModelOptions, size: int, splits: pd.DataFrame, phases: Sequence[Phase], store: Path
) -> dict[str, list[float]]:
    """Train a network, and return the loss of every step and the validation loss of every epoch."""
    preprocessing = IMAGENET if ":" in model.backbone else pretrained_preprocessing(model)
    options = TransformOptions(size=size, min_crop_scale=0.08)
    transforms = build_transforms(options, preprocessing, seed=0)
    network, _ = build_network(model, 10, size, seed=0)
    losses: list[float] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno == logging.DEBUG and "loss" in str(record.msg):
                losses.append(float(record.args[2]))  # type: ignore[index, arg-type]

    logger, listener = logging.getLogger("thawline.training"), Listener()
    level = logger.level
    logger.addHandler(listener)
    logger.setLevel(logging.DEBUG)
    try:
        setup = prepare(PARAMETERS, network, splits, transforms, ActivationCache(store, 1))
        history = train(setup, phases).history
    finally:
        logger.removeHandler(listener)
        logger.setLevel(level)
    return {"steps": losses, "epochs": history["val_loss"].tolist()}


def hash_of_splits(folder: Path) -> str:
    """Return the SHA-256 of the splits of the digits in a folder, by relative path."""
    manifest = find_images(str(folder), folder, folder)
    manifest["sha256"] = [
        hashlib.sha256(Path(p).read_bytes()).hexdigest() for p in manifest["path"]
    ]
    splits = split_dataset(manifest, default_parameters().dataset.fractions, seed=0)
    rows = [
        f"{Path(path).relative_to(folder)} {split}"
        for path, split in zip(splits["path"], splits["split"], strict=True)
    ]
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


def default_parameters() -> Parameters:
    """Return the parameters of conf/base, for a strategy that does not depend on the others."""
    tree: dict[str, Any] = {}
    for name in ("parameters", "parameters_strategies", "parameters_sweep"):
        text = (ROOT / "conf" / "base" / f"{name}.yml").read_text(encoding="utf-8")
        tree |= yaml.safe_load(text.replace("${oc.env:THAWLINE_SWEEP_STORAGE,null}", "null"))
    return validate_parameters(tree | {"strategy": "head_only"})


def answers_of_paired_test() -> dict[str, list[float]]:
    """Return what the test says of one and of three trainings of two made-up models."""
    rng = np.random.default_rng(0)
    hard = rng.random(60)
    a, b = (rng.random((3, 60)) * 0.6 + 0.4 * hard < limit for limit in (0.75, 0.6))
    return {"one": list(paired_test(a[0], b[0])), "three": list(paired_test(a, b))}


def metrics_of_a_run(folder: Path) -> dict[str, float]:
    """Return the metrics of `kedro run --pipeline=finetune` on the digits in a folder."""
    from conftest import copy_project, report, run_kedro

    project = copy_project(folder.parent / "project")
    options = f"dataset.root={folder},transforms.size=32,transforms.min_crop_scale=0.08"
    options += ",training.precision=fp32"
    options += ",training.epochs=2,training.num_workers=0,training.optimizer=sgd,training.lr=0.05"
    run_kedro(project, "run", "--to-nodes=report.measure_calibration", f"--params={options}")
    return report(project, "metrics.json") | report(project, "calibration.json")


def compute_records(folder: Path) -> dict[str, Any]:
    """Return all records; an empty folder is filled with what they need."""
    digits = write_digits(folder / "digits", images_per_class=30)
    splits = fixed_splits(write_digits(folder / "few", images_per_class=8))
    return {
        "small network": losses_of_steps(SMALL_NET, 32, splits, [HEAD, ALL], folder / "small"),
        "EfficientNet-Lite0": losses_of_steps(LITE0, 64, splits, [HEAD, CALM], folder / "lite0"),
        "splits": hash_of_splits(digits),
        "study": study_fingerprint(default_parameters(), splits),
        "paired_test": answers_of_paired_test(),
        "run": metrics_of_a_run(digits),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        text = json.dumps(compute_records(Path(temporary).resolve()), indent=1)
    RECORDS.write_text(text + "\n", encoding="utf-8")
    print(text)
