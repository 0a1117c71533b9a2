"""A trained network with all that is needed to use it, and the folder it is kept in."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from thawline.backbones import build_network
from thawline.errors import CheckpointError
from thawline.images import Source
from thawline.options import ModelOptions
from thawline.transforms import Preprocessing, evaluation_view, normalise

FORMAT = 1
WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "classifier.json"


@dataclass(frozen=True)
class Classifier:
    """A network and what belongs to it.

    Attributes:
        network: from normalised images (N, 3, size, size) to logits (N, classes).
        class_names: in the order of the network's outputs.
        preprocessing: what the network expects of an image.
        model: how the network is built.
        training: how it came about (strategy, seed, epoch, versions), for people to read.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    model: ModelOptions
    training: dict[str, Any] = field(default_factory=dict)


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write weights as safetensors and the rest as JSON into a new folder, in whole or not at all.

    Raises:
        FileExistsError: when the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a classifier is never overwritten.")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        save_model(classifier.network, str(unfinished / WEIGHTS_FILE))
        description = {
            "format": FORMAT,
            "class_names": classifier.class_names,
            "preprocessing": classifier.preprocessing.model_dump(),
            "model": classifier.model.model_dump(),
            "training": classifier.training,
        }
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (unfinished / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_classifier(folder: Path) -> Classifier:
    """Return the classifier that `save_classifier` wrote, in evaluation mode on the CPU.

    Raises:
        CheckpointError: when the folder holds no classifier, or a later format of one.
    """
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(f"'{folder}' holds no classifier ({error}).") from error
    if description["format"] != FORMAT:
        raise CheckpointError(
            f"'{folder}' has format {description['format']}; this version of Thawline reads"
            f" {FORMAT}. Install the version that wrote it."
        )
    model = ModelOptions(**description["model"])
    preprocessing = Preprocessing(**description["preprocessing"])
    class_names = tuple(description["class_names"])
    architecture = model.model_copy(update={"weights": "none"})
    network, _ = build_network(architecture, len(class_names), preprocessing.size, seed=0)
    load_model(network, folder / WEIGHTS_FILE)
    return Classifier(network.eval(), class_names, preprocessing, model, description["training"])


@torch.inference_mode()
def classify(
    classifier: Classifier, images: Sequence[Source], batch_size: int = 32
) -> pd.DataFrame:
    """Return label and probability (0 to 1) for each image, given as a path or as a file's bytes.

    Raises:
        OSError: when an image cannot be read.
    """
    preprocessing = classifier.preprocessing
    network = classifier.network.eval()
    rows: list[tuple[str, float]] = []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        views = torch.stack([evaluation_view(image, preprocessing) for image in batch])
        top, idx = probabilities(network(normalise(views, preprocessing))).max(dim=1)
        names = (classifier.class_names[i] for i in idx.tolist())
        rows.extend(zip(names, top.tolist(), strict=True))
    return pd.DataFrame(rows, columns=["label", "probability"])


def probabilities(logits: Tensor) -> Tensor:
    """Return float32 probabilities (N, C); logarithms of probabilities serve as logits too."""
    return logits.float().softmax(dim=1)
