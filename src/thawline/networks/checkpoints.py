"""Read and describe weights files: formats, wrappers, name prefixes, class names."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from thawline.errors import CheckpointError
from thawline.networks.files import DESCRIPTION_FILE, WEIGHTS_FILE, check_weights_file
from thawline.networks.pickles import PickledCodeError, read_pickle

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")
# DataParallel, Lightning and others, MMPretrain, torch.compile
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
MATRIX = 2  # dimensions of a linear layer's weight
MAX_WRAPPERS = 3  # nested; a pickle can contain itself


@dataclass(frozen=True)
class Checkpoint:
    """The content of a weights file."""

    path: Path
    tensors: dict[str, Tensor]  # on the CPU, by their names in the file
    wrappers: tuple[str, ...]  # keys that lead to the tensors, outermost first
    class_names: tuple[str, ...]  # of the outputs in order; empty if unknown
    other: dict[str, Any]  # values beside the tensors and the wrappers, by key
    classifier: dict[str, Any] | None  # description beside the weights, if Thawline saved them


def read_checkpoint(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Read the tensors in a .safetensors file or a file of `torch.save`.

    The state dict may be wrapped in dicts, under one of `WRAPPERS`. `trust_pickle` executes code in
    the file, such as a whole pickled network.

    Raises:
        CheckpointError: if the file cannot be read, has no state dict, or is not trusted.
    """
    check_weights_file(path)
    try:
        content: Any = load_file(path) if _is_safetensors(path) else read_pickle(path, trust_pickle)
    except OSError as error:
        raise CheckpointError(f"model.weights: '{path}' cannot be read ({error}).") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"model.weights: '{path}' is an incomplete or damaged safetensors file ({error})."
            " Download it again."
        ) from error
    found = _find_state_dict(content, MAX_WRAPPERS)
    if found is None:
        raise CheckpointError(
            f"model.weights: '{path}' contains no state dict, but a {type(content).__name__}"
            " without named tensors. Save one with torch.save(network.state_dict(), path)."
        )
    wrappers, state_dict, other = found
    tensors = {str(n): t.detach() for n, t in state_dict.items() if isinstance(t, Tensor)}
    description = _read_description(path)
    class_names = tuple((description or {}).get("class_names", ())) or _find_class_names(other)
    return Checkpoint(path, tensors, wrappers, class_names, other, description)


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Describe a weights file or a saved classifier's folder, without executing anything in it.

    Raises:
        CheckpointError: if it is neither.
    """
    if (path / DESCRIPTION_FILE).is_file():
        path = path / WEIGHTS_FILE
    try:
        checkpoint = read_checkpoint(path)
    except PickledCodeError as error:
        is_network = any(name.startswith("torch.nn.modules.") for name in error.imports)
        kind = "a whole pickled network" if is_network else "a pickle that runs code"
        size = path.stat().st_size
        return {"path": str(path), "bytes": size, "kind": kind, "imports": error.imports}
    tensors = checkpoint.tensors
    prefixes = dict.fromkeys(name.removesuffix(without_prefixes(name)[-1]) for name in tensors)
    kind = "a plain state dict"
    if checkpoint.classifier is not None:
        kind = "a classifier of Thawline"
    elif _is_safetensors(path):
        kind = "safetensors"
    elif checkpoint.wrappers:
        kind = f"a state dict under {'.'.join(checkpoint.wrappers)}"
    matrices = [
        {"name": name, "classes": t.shape[0], "width": t.shape[1]}
        for name, t in tensors.items()
        if name.endswith(".weight") and t.ndim == MATRIX
    ]
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "kind": kind,
        "tensors": len(tensors),
        "parameters": sum(t.numel() for n, t in tensors.items() if not n.endswith(STATISTICS)),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors.values()}),
        "prefixes": [prefix for prefix in prefixes if prefix],
        "head": matrices[-1] if matrices else None,
        "class_names": list(checkpoint.class_names),
        "other": {
            key: value if isinstance(value, (str, int, float, type(None))) else type(value).__name__
            for key, value in checkpoint.other.items()
        },
        "classifier": checkpoint.classifier,
    }


def without_prefixes(name: str) -> list[str]:
    """Return a tensor's name, then what remains as known prefixes are removed one by one."""
    names = [name]
    while prefix := next((p for p in PREFIXES if names[-1].startswith(p)), ""):
        names.append(names[-1].removeprefix(prefix))
    return names


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is, or claims to be, safetensors: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _find_state_dict(
    content: Any, depth: int
) -> tuple[tuple[str, ...], Mapping[str, Any], dict[str, Any]] | None:
    """Return the keys of the wrappers, the state dict and all other values, if there is one."""
    if isinstance(content, nn.Module):
        return (), content.state_dict(), {}
    if not isinstance(content, Mapping):
        return None
    for key in WRAPPERS if depth else ():
        if found := _find_state_dict(content.get(key), depth - 1):
            wrappers, state_dict, inner = found
            beside = {str(k): value for k, value in content.items() if k != key}
            return (key, *wrappers), state_dict, {**inner, **beside}
    if not any(isinstance(value, Tensor) for value in content.values()):
        return None
    return (), content, {str(k): v for k, v in content.items() if not isinstance(v, Tensor)}


def _find_class_names(other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names among the values of a checkpoint, or nothing."""
    for key in ("class_names", "classes"):
        names = other.get(key)
        if isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names):
            return tuple(names)
    indices = other.get("class_to_idx")
    if isinstance(indices, Mapping) and [*range(len(indices))] == sorted(
        idx for idx in indices.values() if isinstance(idx, int)
    ):
        return tuple(map(str, sorted(indices, key=indices.__getitem__)))
    return ()


def _read_description(path: Path) -> dict[str, Any] | None:
    """Return the JSON beside the weights of a classifier that Thawline saved, if there is one."""
    file = path.with_name(DESCRIPTION_FILE)
    if path.name != WEIGHTS_FILE or not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"model.weights: '{file}' beside the weights is not a JSON object ({error}). Move the"
            " weights elsewhere to load them without it."
        ) from error
