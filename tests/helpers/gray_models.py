"""Classifiers that tell dark from bright images at a threshold, and a registry to keep them in."""

import dataclasses
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
from PIL import Image

from golden.records import default_parameters
from thawline.data.decoding import hash_files
from thawline.data.transforms import Preprocessing
from thawline.datasets import ServedModelDataset
from thawline.evaluation.predictions import predict_split
from thawline.networks.building import build_network
from thawline.networks.classifier import Classifier
from thawline.options import ModelOptions, Parameters, RegistryOptions, TrainingOptions
from thawline.serving.champion import register_model
from thawline.serving.registry import ProjectFolders

TRAINING = TrainingOptions(device="cpu", num_workers=0)
OWN = ModelOptions(backbone="helpers.networks:BrightnessNet", weights="none")
MIDDLE = 128  # of the gray levels: what is darker, is labeled dark
GOOD, MIDDLING, LUCKY, BAD = 128, 80, 86, 40  # so many levels are taken for dark


def classifier(threshold: int, names: tuple[str, str] = ("bright", "dark")) -> Classifier:
    """Return a classifier that takes the gray levels below a threshold for dark."""
    preprocessing = Preprocessing(
        size=4, resize=4, interpolation="nearest", mean=(0, 0, 0), std=(1, 1, 1)
    )
    network, _ = build_network(OWN, 2, 4, seed=0)
    with torch.no_grad():
        network.linear.weight[:] = torch.tensor([[255.0], [-255.0]])
        network.linear.bias[:] = torch.tensor([0.5 - threshold, threshold - 0.5])
    return Classifier(network.eval(), names, preprocessing, OWN)


def write_grays(folder: Path) -> pd.DataFrame:
    """Return splits of one image for each gray level: the even ones are tested."""
    rows = []
    for level in range(256):
        path = (folder / f"{level}.png").as_posix()
        Image.new("L", (4, 4), level).save(path)
        split = "test" if level % 2 == 0 else "val" if level % 4 == 1 else "train"
        rows.append((path, "dark" if level < MIDDLE else "bright", int(level < MIDDLE), split))
    return pd.DataFrame(rows, columns=["path", "label", "class_index", "split"])


def seen_in(splits: pd.DataFrame) -> frozenset[str]:
    return frozenset(hash_files(splits.loc[splits["split"] != "test", "path"].tolist()))


def candidate(threshold: int, splits: pd.DataFrame) -> tuple[Classifier, pd.DataFrame]:
    """Return a classifier that was trained on splits, and its predictions."""
    model = dataclasses.replace(classifier(threshold), seen=seen_in(splits))
    predictions = predict_split(model, splits, "test", 64, TRAINING)
    return model, predictions.assign(sha256=hash_files(predictions["path"].tolist()))


def connect(folder: Path) -> None:
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")


def open_registry(folder: Path) -> ProjectFolders:
    """Return the folders of an empty project whose MLflow database is beside them."""
    connect(folder)
    mlflow.create_experiment("test", artifact_location=(folder / "mlartifacts").as_uri())
    mlflow.set_experiment("test")
    return ProjectFolders(folder / "06_models" / "classifier", folder / "registration.json", folder)


def log_model(model: Classifier, splits: pd.DataFrame) -> str:
    """Return where a classifier was logged."""
    dataset = ServedModelDataset("classifier")
    with mlflow.start_run():
        dataset.save((model, [Path(splits["path"][0]).read_bytes()]))
    return str(dataset.load())


def parameters_of(name: str | None, **options: Any) -> Parameters:
    """Return the parameters of a run that registers its model under a name."""
    registry = RegistryOptions(name=name)
    update = {"registry": registry, "model": OWN, "training": TRAINING, **options}
    return default_parameters().model_copy(update=update)


def register(
    folders: ProjectFolders, name: str, uri: str, threshold: int, splits: pd.DataFrame
) -> dict[str, Any]:
    """Register the model of a threshold, which was logged."""
    model, rows = candidate(threshold, splits)
    return register_model(parameters_of(name), uri, rows, model, folders)
