"""Read and describe files of pretrained weights without executing anything in them."""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from thawline.errors import CheckpointError

WEIGHTS_FILE = "model.safetensors"  # of a classifier that Thawline saved
DESCRIPTION_FILE = "classifier.json"
SEEN_FILE = "seen_images.txt"

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")
# DataParallel, Lightning and others, MMPretrain, torch.compile
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
DEPTH = 3  # wrappers in wrappers; a pickle can contain itself
LEGACY_PICKLES = 4  # torch.save before 1.6: magic number, protocol, system, content
ARCHIVE = b"PK\x03\x04"  # torch.save since 1.6
# What tensors themselves need in a file of the older format.
SAFE_GLOBALS = re.compile(
    r"torch\.\w+|torch\.(_utils|_tensor|storage)\.\w+|collections\.OrderedDict|argparse\.Namespace"
    r"|numpy\.(dtype|_?core\.multiarray\.scalar)|_codecs\.encode"
)
UNREADABLE = (  # all that damaged files were seen to raise in torch.load, pickletools and zipfile
    OSError,
    RuntimeError,
    ValueError,
    LookupError,
    EOFError,
    TypeError,
    AttributeError,
    ImportError,
    AssertionError,
    MemoryError,
    OverflowError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)
SCALAR = np.float64().__reduce__()[0]  # makes a number of NumPy of its bytes
HARMLESS_VALUES: list[Any] = [  # what scripts keep beside weights: their arguments, an accuracy
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    *((SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
NAMES_SHOWN = 3
MATRIX = 2  # dimensions of a linear layer's weight


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds.

    Attributes:
        path: the file.
        tensors: on the CPU, by the names in the file.
        wrappers: keys that the tensors were found under, from the outermost.
        class_names: of the classifier's outputs in order; empty where the file does not say.
        other: what lies beside the tensors or around them, by key.
    """

    path: Path
    tensors: dict[str, Tensor]
    wrappers: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    other: dict[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path, trust_pickle: bool = False) -> Checkpoint:
    """Return the tensors in a .safetensors file or in a file of torch.save.

    Dicts that wrap the state dict under one of `WRAPPERS` are opened. Nothing in the file is
    executed (``weights_only=True``) unless `trust_pickle` says that its author is trusted; a whole
    pickled network then gives its state dict.

    Raises:
        CheckpointError: when the file is absent, cannot be read, holds no state dict, or would have
            to be executed.
    """
    _check_file(path)
    content = _read_safetensors(path) if _is_safetensors(path) else _unpickle(path, trust_pickle)
    found = _find_state_dict(content, DEPTH)
    if found is None:
        raise CheckpointError(
            f"model.weights: '{path}' holds no state dict (a {type(content).__name__} without"
            " tensors by name instead). Save one with torch.save(network.state_dict(), path)."
        )
    wrappers, state_dict, other = found
    return Checkpoint(
        path=path,
        tensors={str(n): t.detach() for n, t in state_dict.items() if isinstance(t, Tensor)},
        wrappers=wrappers,
        class_names=_class_names_beside(path) or _class_names_in(other),
        other=other,
    )


def describe_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint is, in plain values, without executing anything in it.

    `path` is a file of weights or the folder of a classifier that Thawline saved.

    Raises:
        CheckpointError: when it is neither.
    """
    if (path / DESCRIPTION_FILE).is_file():
        path = path / WEIGHTS_FILE
    _check_file(path)
    description: dict[str, Any] = {"path": str(path), "bytes": path.stat().st_size}
    if not _is_safetensors(path) and (imports := unsafe_globals(path)):
        network = any(name.startswith("torch.nn.modules.") for name in imports)
        kind = "a whole pickled network" if network else "a pickle that runs code"
        return {**description, "kind": kind, "imports": imports}
    checkpoint = read_checkpoint(path)
    tensors = checkpoint.tensors.values()
    prefixes = {n.removesuffix(without_prefixes(n)[-1]): None for n in checkpoint.tensors}
    return {
        **description,
        "kind": _kind(checkpoint),
        "tensors": len(tensors),
        "parameters": sum(
            t.numel() for n, t in checkpoint.tensors.items() if not n.endswith(STATISTICS)
        ),
        "dtypes": sorted({str(t.dtype).removeprefix("torch.") for t in tensors}),
        "prefixes": [prefix for prefix in prefixes if prefix],
        "head": _guess_head(checkpoint.tensors),
        "class_names": list(checkpoint.class_names),
        "other": {
            key: value if isinstance(value, (str, int, float, type(None))) else type(value).__name__
            for key, value in checkpoint.other.items()
        },
        "classifier": _read_description(path),
    }


def unsafe_globals(path: Path) -> list[str]:
    """Return what a file of torch.save would import beyond what tensors need, executing nothing.

    Raises:
        CheckpointError: when the file is an archive, but not of tensors.
    """
    names: set[str] = set()
    if _starts_with(path, ARCHIVE):
        _check_archive(path)
        try:
            with safe_globals(HARMLESS_VALUES):
                names.update(get_unsafe_globals_in_checkpoint(path))
        except UNREADABLE as error:
            raise _unreadable(path, error) from error
        return sorted(names)
    # What is no pickle, or one that is cut off, ends the look; torch.load says which.
    with path.open("rb") as file, contextlib.suppress(*UNREADABLE):
        for _ in range(LEGACY_PICKLES):
            names.update(_imports(file))
    return sorted(name for name in names if not SAFE_GLOBALS.fullmatch(name))


def _imports(file: BinaryIO) -> Iterator[str]:
    """Yield what one pickle imports; the next one in the file, if any, starts where it ends."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _check_file(path: Path) -> None:
    if path.is_dir():
        inside = path / WEIGHTS_FILE
        found = inside if inside.is_file() else "the file in it"
        raise CheckpointError(f"model.weights: '{path}' is a folder; give {found}.")
    if not path.is_file():
        raise CheckpointError(f"model.weights: there is no file '{path}'.")
    if not path.stat().st_size:
        raise CheckpointError(f"model.weights: '{path}' is empty; get it again.")


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that holds no plain tensors, or more than the file's own size.

    torch.save never compresses, so a record that is larger than its file is there to fill memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except UNREADABLE as error:
        raise CheckpointError(
            f"model.weights: '{path}' is cut off or damaged ({error}); get it again."
        ) from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise CheckpointError(
            f"model.weights: '{path}' is a TorchScript archive, which is a program. Save its"
            " weights where you trust it: torch.save(torch.jit.load(path).state_dict(),"
            " 'weights.pth')."
        )
    compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if compressed or sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(
            f"model.weights: '{path}' is compressed, or declares more than it holds, which"
            " torch.save never does. It was not opened; get the file from its author."
        )


def _is_safetensors(path: Path) -> bool:
    """Return whether a file is, or claims to be, safetensors: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(magic)) == magic


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"model.weights: '{path}' is no whole safetensors file ({error}); get it again."
        ) from error


def _unpickle(path: Path, trust_pickle: bool) -> Any:
    """Return what torch.load returns; nothing is executed but with `trust_pickle`."""
    imports = unsafe_globals(path)
    if imports and not trust_pickle:
        raise CheckpointError(
            f"model.weights: '{path}' holds more than tensors: loading it would run code"
            f" ({first_of(imports)}). Nothing was run. The safer way: where you trust the file,"
            " save its weights alone, torch.save(network.state_dict(), 'weights.pth'). Or set"
            " model.trust_pickle=true to let this file do whatever its author wants."
        )
    try:
        with safe_globals(HARMLESS_VALUES):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except UNREADABLE as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
    return CheckpointError(
        f"model.weights: '{path}' cannot be read as a state dict ({reason}). Save one with"
        " torch.save(network.state_dict(), path)."
    )


def _find_state_dict(
    content: Any, depth: int
) -> tuple[tuple[str, ...], Mapping[str, Any], dict[str, Any]] | None:
    """Return the keys of the wrappers, the state dict, and what else there is; or None."""
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


def _class_names_in(other: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names that a checkpoint brings, or nothing."""
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


def _class_names_beside(path: Path) -> tuple[str, ...]:
    return tuple((_read_description(path) or {}).get("class_names", ()))


def _read_description(path: Path) -> dict[str, Any] | None:
    """Return the JSON beside the weights of a classifier that Thawline saved, or None."""
    file = path.with_name(DESCRIPTION_FILE)
    if path.name != WEIGHTS_FILE or not file.is_file():
        return None
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"model.weights: '{file}' beside the weights is no JSON object ({error}). Move the"
            " weights elsewhere to load them without it."
        ) from error


def _kind(checkpoint: Checkpoint) -> str:
    if (
        checkpoint.path.with_name(DESCRIPTION_FILE).is_file()
        and checkpoint.path.name == WEIGHTS_FILE
    ):
        return "a classifier of Thawline"
    if _is_safetensors(checkpoint.path):
        return "safetensors"
    if checkpoint.wrappers:
        return f"a state dict under {'.'.join(checkpoint.wrappers)}"
    return "a plain state dict"


def _guess_head(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Return name, outputs and inputs of the last linear layer, or None."""
    matrices = [(n, t) for n, t in tensors.items() if t.ndim == MATRIX and n.endswith(".weight")]
    if not matrices:
        return None
    name, weight = matrices[-1]
    return {"name": name, "classes": weight.shape[0], "width": weight.shape[1]}


def without_prefixes(name: str) -> list[str]:
    """Return a name, and what is left of it as one known prefix after the other is removed."""
    names = [name]
    while prefix := next((p for p in PREFIXES if names[-1].startswith(p)), ""):
        names.append(names[-1].removeprefix(prefix))
    return names


def first_of(names: Sequence[str]) -> str:
    """Return the number of names and the first ones."""
    more = ", …" * (len(names) > NAMES_SHOWN)
    return f"{len(names)} ({', '.join(names[:NAMES_SHOWN])}{more})"
