"""Read files of `torch.save` without executing anything in them."""

from __future__ import annotations

import argparse
import contextlib
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from thawline.errors import CheckpointError, first_line, summarize_names

ZIP_MAGIC = b"PK\x03\x04"  # torch.save since 1.6 writes an archive
PICKLES_BEFORE_ARCHIVES = 4  # magic number, protocol, system, content
# Names that a pickle before 1.6 imports for tensors, and scripts for what they save beside them.
SAFE_GLOBALS = re.compile(
    r"torch\.\w+|torch\.(_utils|_tensor|storage)\.\w+|collections\.OrderedDict|argparse\.Namespace"
    r"|numpy\.(dtype|_?core\.multiarray\.scalar)|_codecs\.encode"
)
NUMPY_SCALAR = np.float64().__reduce__()[0]  # the function that restores a NumPy number
SAFE_CLASSES: list[Any] = [  # the same for torch.load: arguments of scripts, an accuracy
    argparse.Namespace,
    np.dtype,
    *(type(np.dtype(name)) for name in ("bool", "int32", "int64", "float32", "float64")),
    *((NUMPY_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
DAMAGE_ERRORS = (  # everything that torch.load, pickletools and zipfile raise for damaged files
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
    """Return the content of a file of `torch.save`, on the CPU.

    Args:
        path: the file.
        trust_pickle: execute the code in the file, if it contains any.

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
        with safe_globals(SAFE_CLASSES):
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except DAMAGE_ERRORS as error:
        raise _unreadable(path, error) from error


def unsafe_globals(path: Path) -> list[str]:
    """Return the names that a file of `torch.save` would import, except those that tensors need.

    Raises:
        CheckpointError: if the file is an archive, but not of tensors.
    """
    if _is_archive(path):
        _check_archive(path)
        try:
            with safe_globals(SAFE_CLASSES):
                return sorted(get_unsafe_globals_in_checkpoint(path))
        except DAMAGE_ERRORS as error:
            raise _unreadable(path, error) from error
    names: set[str] = set()
    # torch.load reports what is damaged or not a pickle.
    with path.open("rb") as file, contextlib.suppress(*DAMAGE_ERRORS):
        for _ in range(PICKLES_BEFORE_ARCHIVES):
            names.update(_imported_names(file))
    return sorted(name for name in names if not SAFE_GLOBALS.fullmatch(name))


def _imported_names(file: BinaryIO) -> Iterator[str]:
    """Yield the names that a pickle imports, and leave the file at its end."""
    strings: list[str] = []
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings[-2:])
        elif isinstance(argument, str):
            strings.append(argument)


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def _check_archive(path: Path) -> None:
    """Refuse an archive that contains a program, or would expand beyond the file's size.

    torch.save never compresses. A record that is larger than its file is there to fill the memory.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except DAMAGE_ERRORS as error:
        raise CheckpointError(
            f"model.weights: '{path}' is an incomplete or damaged archive ({error}). Download it"
            " again."
        ) from error
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
        f"model.weights: '{path}' cannot be read as a state dict ({reason}). Save one with"
        " torch.save(network.state_dict(), path)."
    )
