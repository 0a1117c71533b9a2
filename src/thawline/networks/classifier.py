"""A trained classifier: network, class names and preprocessing, and the folder it is saved in."""

import json
import platform
import sys
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import Tensor, nn

from thawline.data.atomic_write import write_atomic
from thawline.data.transforms import Preprocessing
from thawline.errors import CheckpointError, ParameterError
from thawline.networks.building import build_network
from thawline.networks.files import (
    DESCRIPTION_FILE,
    REFERENCE_FILE,
    SEEN_FILE,
    WEIGHTS_FILE,
    WRITER,
    is_weights_file,
    read_seen,
)
from thawline.networks.libraries import implied_kwargs
from thawline.options import RENAMED, ModelOptions

FORMAT = 4
LARGEST = sys.float_info.max  # a bound that nothing exceeds, which JSON can hold
PACKAGES = ("thawline", "torch", "torchvision", "timm")
REFERENCE = "reference"
PARSE_ERRORS = (
    OSError, SafetensorError, UnicodeError, json.JSONDecodeError, KeyError, TypeError,
    ValidationError,
)  # fmt: skip


@dataclass(frozen=True)
class Calibration:
    """How sure a classifier is, as measured on validation images. The default changes nothing."""

    temperature: float = 1.0  # divisor of the logits
    # Of a class in a prediction set, see `evaluation.prediction_sets`; without, there are no sets
    max_scores: tuple[float, ...] = ()
    coverage: float = 0.0  # how often a set should hold the true class
    max_distance: float = LARGEST  # from the training images, of an image that is answered
    reference: Tensor | None = None  # features of some of these, (M, D) float16, of length 1
    reference_images: tuple[tuple[str, str], ...] = ()  # their paths, as in training, and labels


@dataclass(frozen=True)
class Classifier:
    """A network with everything that is needed to use it."""

    network: nn.Module  # maps normalized images (N, 3, size, size) to logits (N, classes)
    class_names: tuple[str, ...]  # in the order of the outputs
    preprocessing: Preprocessing
    model: ModelOptions  # how the network is built
    training: dict[str, Any] = field(default_factory=dict)  # how it was trained, to be read
    # SHA-256 of each image that it or an ancestor of its weights was trained or validated on
    seen: frozenset[str] = frozenset()
    calibration: Calibration = Calibration()


def save_classifier(classifier: Classifier, folder: Path) -> None:
    """Save weights as safetensors and the rest as JSON and text in a new folder.

    Raises:
        FileExistsError: if the folder exists: a classifier is never overwritten.
    """
    calibration = asdict(classifier.calibration)
    reference = calibration.pop(REFERENCE)
    kwargs = implied_kwargs(classifier.model) | classifier.model.backbone_kwargs
    model = classifier.model.model_copy(update={"backbone_kwargs": kwargs})
    description = {
        "format": FORMAT,
        "class_names": classifier.class_names,
        "preprocessing": classifier.preprocessing.model_dump(),
        "model": model.model_dump(exclude={"trust_code"}),  # each run decides anew
        "training": classifier.training,
        "calibration": calibration,
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
    text = json.dumps(description, indent=2, ensure_ascii=False)
    network, metadata = classifier.network, {WRITER: version(WRITER)}
    folder.mkdir(parents=True)
    write_atomic(folder / WEIGHTS_FILE, lambda file: save_model(network, str(file), metadata))
    (folder / SEEN_FILE).write_text("\n".join(sorted(classifier.seen)), encoding="ascii")
    if reference is not None:
        write_atomic(folder / REFERENCE_FILE, lambda file: save_file({REFERENCE: reference}, file))
    # Last, since a folder without it contains no classifier.
    (folder / DESCRIPTION_FILE).write_text(text, encoding="utf-8")


def load_classifier(folder: Path, own: ModelOptions | None = None) -> Classifier:
    """Load a classifier that `save_classifier` saved, in evaluation mode on the CPU.

    A network from a factory (package.module:Factory) is loaded only if `own`, the model options of
    the run, have the same backbone, or `trust_code`.

    Raises:
        CheckpointError: if the folder contains no complete classifier, one of a newer format, or
            one from a factory that is not trusted; nothing is imported then.
    """
    try:
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        if description["format"] > FORMAT:
            raise CheckpointError(
                f"'{folder}' has format {description['format']}, but this version of Thawline reads"
                f" formats up to {FORMAT}. Install the version that saved it."
            )
        model = _read_model_options(description)
        preprocessing = Preprocessing(**description["preprocessing"])
        class_names = tuple(description["class_names"])
        training = description["training"]
        seen = read_seen(folder)
        calibration = _read_calibration(description.get("calibration", {}), folder)
    except PARSE_ERRORS as error:
        raise CheckpointError(
            f"'{folder}' contains no classifier ({type(error).__name__}: {error}). Give a folder"
            f" with {DESCRIPTION_FILE} and {WEIGHTS_FILE} as `kedro run` saved them."
        ) from error
    _check_factory(folder, model, own)
    try:
        # A classifier of an earlier version lacks what named weights imply.
        implied = {} if is_weights_file(model.weights) else implied_kwargs(model)
        kwargs = implied | model.backbone_kwargs
        architecture = model.model_copy(update={"weights": "none", "backbone_kwargs": kwargs})
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
    network.eval()
    return Classifier(network, class_names, preprocessing, model, training, seen, calibration)


def _read_calibration(description: dict[str, Any], folder: Path) -> Calibration:
    """Return the calibration of a classifier; the default for one of an earlier format."""
    file = folder / REFERENCE_FILE
    reference = load_file(file)[REFERENCE] if file.is_file() else None
    own = {
        **description,
        "max_scores": tuple(description.get("max_scores", ())),
        "reference_images": tuple(map(tuple, description.get("reference_images", ()))),
    }
    return Calibration(**own, reference=reference)


def _check_factory(folder: Path, model: ModelOptions, own: ModelOptions | None) -> None:
    """Refuse to import a factory that only the saved classifier names."""
    if ":" not in model.backbone or (own and (own.trust_code or own.backbone == model.backbone)):
        return
    expected = f"model.backbone is {own.backbone}" if own else "no model.backbone was given"
    raise CheckpointError(
        f"model.trust_code: '{folder}' names the factory {model.backbone}, but {expected}. Nothing"
        " was imported. If you trust the classifier and that code, set"
        f" model.backbone={model.backbone}, or model.trust_code=true."
    )


def _read_model_options(description: dict[str, Any]) -> ModelOptions:
    """Return how the network is built, from the JSON file of any format."""
    options = {
        RENAMED.get(f"model.{name}", name).removeprefix("model."): value
        for name, value in description["model"].items()
    }
    if options["head"] == "own":
        options["head"] = "builtin"
    if description["format"] == 1 and options["head"] == "linear":
        options["head_dropout"] = None  # format 1 recorded it for mlp only, but wrote it for both
    return ModelOptions(**options)
