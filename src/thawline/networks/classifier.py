"""A trained network with all that is needed to use it, and the folder it is kept in."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import Field, PositiveFloat, PositiveInt, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_model, save_model
from torch import Tensor, nn

from thawline.data.files import write_atomic
from thawline.data.sources import Source, describe_problem, image_size
from thawline.data.transforms import Preprocessing, evaluation_view, normalize
from thawline.errors import CheckpointError, DataError, ThawlineError
from thawline.networks.building import build_network
from thawline.networks.checkpoints import DESCRIPTION_FILE, SEEN_FILE, WEIGHTS_FILE
from thawline.options import RENAMED, ModelOptions, Options

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
    except ThawlineError:
        raise
    except Exception as error:  # whatever a constructor may raise for arguments from elsewhere
        raise CheckpointError(
            f"'{folder}': {model.backbone} cannot be made with {model.backbone_kwargs}"
            f" ({type(error).__name__}: {error}). Correct model.backbone_kwargs in"
            f" {DESCRIPTION_FILE}."
        ) from error
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


class RequestLimits(Options):
    """What is taken at once by a classifier that is served, of images that are given as bytes."""

    max_images: PositiveInt = Field(256, description="images in one request")
    max_mb: PositiveFloat = Field(100, description="MB (10^6 bytes), of all images of a request")
    max_megapixels: PositiveFloat = Field(89, description="million pixels, of each image")


def check_request(images: Sequence[Any], limits: RequestLimits) -> None:
    """Look at the number, the bytes and the headers of images before one of them is decoded.

    Args:
        images: whatever is no bytes, such as a path, does not count.
        limits: that are not to be exceeded.

    Raises:
        DataError: naming the limit; an image is named by its position, the first being 1.
    """
    contents = {number: i for number, i in enumerate(images, 1) if isinstance(i, bytes)}
    if len(contents) > limits.max_images:
        raise DataError(
            f"{len(contents)} images are too many for one request; max_images is"
            f" {limits.max_images}. Ask several times."
        )
    megabytes = sum(len(content) for content in contents.values()) / 1e6
    if megabytes > limits.max_mb:
        raise DataError(
            f"{megabytes:.1f} MB are too many for one request; max_mb is {limits.max_mb:g}. Send"
            " fewer or smaller images."
        )
    for number, content in contents.items():
        width, height = _size(content, number)
        if width * height > limits.max_megapixels * 1e6:
            raise DataError(
                f"Image {number} has {width} x {height} px; max_megapixels is"
                f" {limits.max_megapixels:g}. Send a smaller one."
            )


@torch.inference_mode()
def classify(
    classifier: Classifier, images: Sequence[Source], batch_size: int = 32, top_k: int = 1
) -> pd.DataFrame:
    """Return the columns of `rank` for each image, given as a path or as a file's bytes.

    Raises:
        DataError: when an image cannot be read; it is named by its position, the first being 1.
    """
    preprocessing = classifier.preprocessing
    network = classifier.network.eval()
    answers = [rank(torch.empty(0, len(classifier.class_names)), classifier.class_names, top_k)]
    for start in range(0, len(images), batch_size):
        batch = enumerate(images[start : start + batch_size], start + 1)
        views = torch.stack([_view(image, number, preprocessing) for number, image in batch])
        logits = network(normalize(views, preprocessing))
        answers.append(rank(probabilities(logits), classifier.class_names, top_k))
    return pd.concat(answers, ignore_index=True)


def rank(table: Tensor, class_names: Sequence[str], top_k: int) -> pd.DataFrame:
    """Return the likeliest classes of each row of probabilities (N, C), the first of equals first.

    Returns:
        label and probability (0 to 1), then label_2, probability_2 and so on up to `top_k` or C.
    """
    top, idx = table.double().sort(dim=1, descending=True, stable=True)
    names = pd.Series(class_names, dtype="str")
    columns: dict[str, Any] = {}
    for place in range(min(top_k, len(names))):
        suffix = f"_{place + 1}" if place else ""
        columns[f"label{suffix}"] = names.take(idx[:, place].numpy()).array
        columns[f"probability{suffix}"] = top[:, place].numpy()
    return pd.DataFrame(columns)


def _size(image: Source, number: int) -> tuple[int, int]:
    try:
        return image_size(image)
    except Exception as error:  # as below
        raise _unreadable(image, number, error) from error


def _view(image: Source, number: int, preprocessing: Preprocessing) -> Tensor:
    try:
        return evaluation_view(image, preprocessing)
    except Exception as error:  # a damaged file can make a decoder raise anything
        raise _unreadable(image, number, error) from error


def _unreadable(image: Source, number: int, error: Exception) -> DataError:
    return DataError(f"Image {number} cannot be read: {describe_problem(error, image)}.")


def probabilities(logits: Tensor) -> Tensor:
    """Return float32 probabilities (N, C); logarithms of probabilities serve as logits too."""
    return logits.float().softmax(dim=1)
