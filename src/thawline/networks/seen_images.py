"""The files of a saved classifier, and which images it and its ancestors have seen."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from thawline.options import ModelOptions

WEIGHTS_FILE = "model.safetensors"
DESCRIPTION_FILE = "classifier.json"
SEEN_FILE = "seen_images.txt"
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
