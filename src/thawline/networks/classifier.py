"""A trained network with all that is needed to use it, and the folder it is kept in."""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import nn

from thawline.data.atomic_write import write_atomic
from thawline.data.transforms import Preprocessing
from thawline.errors import CheckpointError, ParameterError
from thawline.networks.building import build_network
from thawline.networks.checkpoints import DESCRIPTION_FILE, SEEN_FILE, WEIGHTS_FILE
from thawline.options import RENAMED, ModelOptions

FORMAT = 3
WRITER = "thawline"  # key in the metadata of the weights, by which a copy is recognized
PACKAGES = ("thawline", "torch", "torchvision", "timm")


@dataclass(frozen=True)
class Classifier:
    """A network and what belongs to it.

    Attributes:
        network: from normalized images (N, 3, size, size) to logits (N, classes).
        class_names: in the order of the network's outputs.
        preprocessing: what the network expects of an image.
        model: how the network is built.
        training: how it came about (strategy, seed, epoch, versions), for people to read.
        seen: SHA-256 of each image that it, or a classifier that its weights came from, was trained
            or validated on: 64 hexadecimal digits each.
    """

    network: nn.Module
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    model: ModelOptions
    training: dict[str, Any] = field(default_factory=dict)
    seen: frozenset[str] = frozenset()


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Write weights as safetensors and the rest as JSON and text into a new folder, atomically.

    Raises:
        FileExistsError: when the folder exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; a classifier is never overwritten.")
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}")
    unfinished.mkdir(parents=True)
    try:
        written_by = {WRITER: version(WRITER)}
        write_atomic(
            unfinished / WEIGHTS_FILE,
            lambda file: save_model(classifier.network, str(file), written_by),
        )
        description = {
            "format": FORMAT,
            "class_names": classifier.class_names,
            "preprocessing": classifier.preprocessing.model_dump(),
            "model": classifier.model.model_dump(exclude={"trust_code"}),  # each run decides anew
            "training": classifier.training,
            "versions": {
                **{name: version(name) for name in PACKAGES},
                "python": platform.python_version(),
            },
        }
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (unfinished / DESCRIPTION_FILE).write_text(text, encoding="utf-8")
        (unfinished / SEEN_FILE).write_text("\n".join(sorted(classifier.seen)), encoding="ascii")
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def load_classifier(folder: Path, own: ModelOptions | None = None) -> Classifier:
    """Return the classifier that `save_classifier` wrote, in evaluation mode on the CPU.

    The file of weights that it was fine-tuned from is not needed, nor read. No code is imported
    that the folder alone names.

    Args:
        folder: with the classifier.
        own: the model options of the run. A classifier whose network comes from a factory
            (package.module:Factory) is loaded if `own.backbone` is that factory, or
            `own.trust_code` is true.

    Raises:
        CheckpointError: when the folder holds no whole classifier, or a later format of one, or
            names a factory that `own` does not.
    """
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise CheckpointError(
                f"'{folder}' has format {description['format']}; this version of Thawline reads up"
                f" to {FORMAT}. Install the version that wrote it."
            )
        model = _model_options(description)
        preprocessing = Preprocessing(**description["preprocessing"])
        class_names = tuple(description["class_names"])
        training = description["training"]
        seen = read_seen(folder)
    except (
        OSError,
        UnicodeError,
        json.JSONDecodeError,
        KeyError,
        TypeError,
        ValidationError,
    ) as error:
        raise CheckpointError(
            f"'{folder}' holds no classifier ({type(error).__name__}: {error}). Give a folder with"
            f" {DESCRIPTION_FILE} and {WEIGHTS_FILE} as `kedro run` wrote them."
        ) from error
    _check_factory(folder, model, own)
    architecture = model.model_copy(update={"weights": "none"})
    try:
        network, _ = build_network(architecture, len(class_names), preprocessing.size, seed=0)
    except ParameterError as error:
        raise CheckpointError(f"'{folder / DESCRIPTION_FILE}' cannot be used: {error}") from error
    try:
        load_model(network, folder / WEIGHTS_FILE)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"'{folder / WEIGHTS_FILE}' is damaged or belongs to another network ({error}). Copy"
            f" it again, together with its {DESCRIPTION_FILE}."
        ) from error
    return Classifier(network.eval(), class_names, preprocessing, model, training, seen)


def read_seen(folder: Path) -> frozenset[str]:
    """Return the SHA-256 of all images that a classifier in a folder was trained or validated on.

    There are none in a folder that an earlier version wrote.

    Raises:
        OSError: when the file is there and cannot be read.
    """
    file = folder / SEEN_FILE
    return frozenset(file.read_text(encoding="ascii").split()) if file.is_file() else frozenset()


def read_ancestors(model: ModelOptions) -> frozenset[str] | None:
    """Return the SHA-256 of all images that the weights of a run have seen in Thawline.

    There are none unless `model.weights` is the file of a classifier, or a link to it. None stands
    for one without `seen_images.txt` beside it: an earlier version wrote it, or it is a copy.
    """
    file = Path(model.weights).expanduser().resolve()
    if not file.is_file():
        return frozenset()
    if (file.parent / SEEN_FILE).is_file():
        return read_seen(file.parent)
    if file.name == WEIGHTS_FILE and (file.parent / DESCRIPTION_FILE).is_file():
        return None
    try:
        with safe_open(file, framework="pt") as weights:
            return None if WRITER in (weights.metadata() or {}) else frozenset()
    except SafetensorError:  # another format
        return frozenset()


def _check_factory(folder: Path, model: ModelOptions, own: ModelOptions | None) -> None:
    """Refuse to import what only an artifact names."""
    if ":" not in model.backbone or (own and (own.trust_code or own.backbone == model.backbone)):
        return
    expected = f"model.backbone is {own.backbone}" if own else "no model.backbone was given"
    raise CheckpointError(
        f"model.trust_code: '{folder}' names the factory {model.backbone}, and {expected}. Nothing"
        " was imported. If you trust the classifier and that code, set"
        f" model.backbone={model.backbone}, or model.trust_code=true."
    )


def _model_options(description: dict[str, Any]) -> ModelOptions:
    """Return how the network is built, from the JSON of any format so far."""
    options = {
        RENAMED.get(f"model.{name}", name).removeprefix("model."): value
        for name, value in description["model"].items()
    }
    if options["head"] == "own":
        options["head"] = "builtin"
    if description["format"] == 1 and options["head"] == "linear":
        options["head_dropout"] = None  # was the mlp's alone, but written for both
    return ModelOptions(**options)
