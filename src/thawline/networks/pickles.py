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
    OSError, RuntimeError, ValueError, LookupError, EOFError, TypeError, AttributeError,
    ImportError, AssertionError, MemoryError, OverflowError, pickle.UnpicklingError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip


class PickledCodeError(CheckpointError):
    """Loading a file would run code, which was not run."""

    def __init__(self, path: Path, imports: list[str]) -> None:
        """Take the names that loading the file would import."""
        self.imports = imports
        super().__init__(
            f"model.weights: '{path}' contains more than tensors; loading it would run code"
            f" ({summarize_names(imports)}). Nothing was run. If you trust the file, save its"
            " weights alone: torch.save(network.state_dict(), 'weights.pth'). Or set"
            " model.trust_pickle=true to run all code in it."
        )


def read_pickle(path: Path, trust_pickle: bool) -> Any:
    """Return the content of a file of `torch.save`, on the CPU; code in it runs only if trusted.

    Raises:
        PickledCodeError: if the file contains code and is not trusted. It has all names that the
            file imports, or in a file older than PyTorch 1.6 the first one.
        CheckpointError: if the file is damaged, or is an archive, but not of tensors.
    """
    with path.open("rb") as file:
        is_archive = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    imports: list[str] = []
    try:
        if is_archive and (problem := _find_problem(path)):
            raise CheckpointError(f"model.weights: '{path}' {problem}")
        with safe_globals(SAFE_GLOBALS):
            if is_archive and not trust_pickle:
                imports = sorted(get_unsafe_globals_in_checkpoint(path))
            if not imports:
                return torch.load(path, map_location="cpu", weights_only=not trust_pickle)
    except CheckpointError:
        raise
    except DAMAGE_ERRORS as error:
        if not trust_pickle:  # find where torch.load stopped
            imports = re.findall(r"GLOBAL ([\w.]+)", str(error))[:1]
        if not imports:
            reason = first_line(error).partition(". ")[0]
            raise CheckpointError(
                f"model.weights: '{path}' cannot be read as a state dict ({reason}). Download it"
                " again, or save one with torch.save(network.state_dict(), path)."
            ) from error
    raise PickledCodeError(path, imports)


def _find_problem(path: Path) -> str:
    """Return why an archive may contain a program or expand to fill the memory, else nothing."""
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.filename.endswith("/constants.pkl") for record in records):
        return (
            "is a TorchScript archive, which is a program. If you trust it, save its weights:"
            " torch.save(torch.jit.load(path).state_dict(), 'weights.pth')."
        )
    compressed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
    if compressed or sum(record.file_size for record in records) > path.stat().st_size:
        return (
            "is compressed or declares more data than it contains, which torch.save never does. It"
            " was not opened. Ask its author for another copy."
        )
    return ""
