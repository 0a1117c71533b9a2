"""Read files of `torch.save` without executing anything in them."""

import argparse
import pickle
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from thawline.errors import CheckpointError, first_line, summarize_names

ZIP_MAGIC = b"PK\x03\x04"  # torch.save since 1.6 writes an archive
NUMPY_SCALAR = np.float64().__reduce__()[0]  # the function that restores a NumPy number
SAFE_GLOBALS: list[Any] = [  # what scripts save beside weights: their arguments, an accuracy
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
DAMAGE_ERRORS = (  # everything that torch.load and zipfile raise for damaged files
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


def read_pickle(path: Path, trust_pickle: bool) -> Any:
    """Return the content of a file of `torch.save`, on the CPU; code in it runs only if trusted.

    Raises:
        CheckpointError: if the file is damaged, or contains code and is not trusted.
    """
    names = unsafe_globals(path)
    if names and not trust_pickle:
        raise CheckpointError(
            f"model.weights: '{path}' contains more than tensors; loading it would run code"
            f" ({summarize_names(names)}). Nothing was run. If you trust the file, save its weights"
            " alone: torch.save(network.state_dict(), 'weights.pth'). Or set"
            " model.trust_pickle=true to run all code in it."
        )
    try:
        return _load(path, weights_only=not trust_pickle)
    except DAMAGE_ERRORS as error:
        raise _unreadable(path, error) from error


def unsafe_globals(path: Path) -> list[str]:
    """Return the names that a file of `torch.save` would import, except those that tensors need.

    Nothing is executed. In a file older than PyTorch 1.6, only the first name is found.

    Raises:
        CheckpointError: if the file is an archive, but not of tensors.
    """
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_archive:
        _check_archive(path)
    try:
        if is_archive:
            with safe_globals(SAFE_GLOBALS):
                return sorted(get_unsafe_globals_in_checkpoint(path))
        _load(path, weights_only=True)
    except DAMAGE_ERRORS as error:
        if is_archive:
            raise _unreadable(path, error) from error
        return re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]  # where torch.load stopped
    return []


def _load(path: Path, weights_only: bool) -> Any:
    with safe_globals(SAFE_GLOBALS):
        return torch.load(path, map_location="cpu", weights_only=weights_only)


def _check_archive(path: Path) -> None:
    """Refuse an archive that contains a program, or that would expand to fill the memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except DAMAGE_ERRORS as error:
        raise _unreadable(path, error) from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise CheckpointError(
            f"model.weights: '{path}' is a TorchScript archive, which is a program. If you trust"
            " it, save its weights: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')."
        )
    compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if compressed or sum(record.file_size for record in records) > path.stat().st_size:
        raise CheckpointError(
            f"model.weights: '{path}' is compressed or declares more data than it contains, which"
            " torch.save never does. It was not opened. Ask its author for another copy."
        )


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Return the error for a file that torch.load cannot read."""
    reason = first_line(error).partition(". ")[0]
    return CheckpointError(
        f"model.weights: '{path}' cannot be read as a state dict ({reason}). Download it"
        " again, or save one with torch.save(network.state_dict(), path)."
    )
