"""Files of weights and of saved classifiers, looked at without PyTorch."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open

from thawline.errors import CheckpointError
from thawline.options import ModelOptions

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "classifier.json"
SEEN_FILE = "seen_images.txt"
REFERENCE_FILE = "reference.safetensors"
WEIGHT_FILES = (".pth", ".pt", ".th", ".ckpt", ".bin", ".tar", ".safetensors")

WRITER = "thawline"  # metadata key of the weights, which identifies a copy of them


def read_seen(folder: Path) -> frozenset[str]:
    """Return the SHA-256 of all images that a saved classifier was trained or validated on."""
    file = folder / SEEN_FILE
    return frozenset(file.read_text(encoding="ascii").split()) if file.is_file() else frozenset()


def read_ancestors(model: ModelOptions) -> frozenset[str] | None:
    """Return the SHA-256 of all images that the weights of a run have seen in Thawline.

    Returns:
        None if the weights are a classifier's, but without `seen_images.txt`: they are a copy, or
        an earlier version saved them.
    """
    file = Path(model.weights).expanduser().resolve()
    if not file.is_file():
        return frozenset()
    if (file.parent / SEEN_FILE).is_file():
        return read_seen(file.parent)
    if file.name == WEIGHTS_FILE and (file.parent / DESCRIPTION_FILE).is_file():
        return None
    try:
        with safe_open(file, framework="numpy") as weights:
            return None if WRITER in (weights.metadata() or {}) else frozenset()
    except SafetensorError:  # another format
        return frozenset()


def is_weights_file(weights: str) -> bool:
    """Return whether `model.weights` names a file rather than weights of a library."""
    return weights.endswith(WEIGHT_FILES) or os.sep in weights


def check_weights_file(path: Path) -> None:
    """Refuse a folder and a file that is absent or empty."""
    if path.is_dir():
        inside = path / WEIGHTS_FILE
        found = inside if inside.is_file() else "the file in it"
        raise CheckpointError(f"model.weights: '{path}' is a folder. Give {found}.")
    if not path.is_file():
        raise CheckpointError(f"model.weights: '{path}' does not exist.")
    if not path.stat().st_size:
        raise CheckpointError(f"model.weights: '{path}' is empty. Download it again.")
