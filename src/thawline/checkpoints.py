"""Read files of pretrained weights safely, and load them so that nothing is lost in silence."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from thawline.errors import CheckpointError

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "model.safetensors"  # of a classifier that Thawline saved
DESCRIPTION_FILE = "classifier.json"

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_ema", "net")
# DataParallel, Lightning and others, MMPretrain, torch.compile
PREFIXES = ("module.", "model.", "backbone.", "_orig_mod.")
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
COUNTER = "num_batches_tracked"  # BatchNorm's; old files lack it, inference never reads it
DEPTH = 3  # wrappers in wrappers; a pickle can contain itself
LEGACY_PICKLES = 4  # torch.save before 1.6: magic number, protocol, system, content
ARCHIVE = b"PK\x03\x04"  # torch.save since 1.6
# What tensors themselves need in a file of the older format.
HARMLESS = re.compile(
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

KeptRows = tuple[str, ...] | Literal["all"]


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


@dataclass(frozen=True)
class OldHead:
    """The classifier that pretrained weights came with.

    Attributes:
        tensors: by their names inside the head.
        class_names: of its outputs in order; empty where they are not known.
    """

    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors, by what became of them.

    Attributes:
        source: the file, or the name of a library's weights.
        loaded: tensors of the backbone that came from the file.
        missing: tensors of the backbone that the file does not have.
        unexpected: tensors of the file that the network has no place for.
        reshaped: tensors of another shape, or of another kind of number, in the file; not loaded.
        replaced: tensors of the old head, which a new one took the place of.
        kept_rows: classes whose weights went from the old head into the new one.
        stem: what was done to the first convolution, if its channels differed.
    """

    source: str
    loaded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    kept_rows: KeptRows = ()
    stem: str = ""

    def __str__(self) -> str:
        """Return one line for the log."""
        parts = [f"weights: {self.source}"]
        if self.loaded:
            parts = [f"weights: {len(self.loaded)} backbone tensors loaded from {self.source}"]
        parts += [self.problems()] if self.problems() else []
        parts += [self.stem] if self.stem else []
        if self.replaced:
            parts.append(f"replaced by a new head: {', '.join(self.replaced)}")
        if self.kept_rows == "all":
            parts.append("the head kept whole")
        elif self.kept_rows:
            parts.append(f"the head's rows kept of {_first(self.kept_rows)}")
        return "; ".join(parts)

    def problems(self) -> str:
        """Return counts and first names of what was not loaded, or nothing."""
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.reshaped,
        }
        return "; ".join(f"{what}: {_first(names)}" for what, names in found.items() if names)


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


def load_backbone(
    network: nn.Module, head_name: str, checkpoint: Checkpoint, min_loaded: float
) -> tuple[LoadReport, OldHead]:
    """Load the backbone's tensors of a checkpoint into `network`; its head is left as it is.

    Tensors are converted to the network's types. A first convolution for another number of channels
    is adapted (see `adapt_channels`).

    Args:
        network: the architecture that the file belongs to.
        head_name: dotted name of its head.
        checkpoint: what `read_checkpoint` returned.
        min_loaded: 0 to 1, share of the backbone's tensors that must come from the file; a tensor
            left over that belongs into a module of the network counts as one that did not.

    Returns:
        What became of each tensor, and the head in the file.

    Raises:
        CheckpointError: when less than `min_loaded` fits; the network is unchanged then.
    """
    state = network.state_dict().items()
    own = {n: t for n, t in state if isinstance(t, Tensor) and not _inside(n, head_name)}
    names = match_names(checkpoint.tensors, own, head_name)
    offered = {target: checkpoint.tensors[name] for name, target in names.items()}
    stem = _adapt_stem(network, offered)
    head = {n: t for n, t in offered.items() if _inside(n, head_name)}
    fitting = {n: t for n, t in offered.items() if n in own and _fits(t, own[n])}
    # Of names that share memory (tied weights) safetensors keeps one.
    filled = {_memory(own[n]) for n in fitting}
    wanted = [n for n in own if not n.endswith(COUNTER)]
    absent = [n for n in wanted if n not in offered]
    tied = {n for n in absent if _memory(own[n]) in filled}
    report = LoadReport(
        source=str(checkpoint.path),
        loaded=tuple(n for n in own if n in fitting or n in tied),
        missing=tuple(n for n in absent if n not in tied),
        unexpected=tuple(
            name
            for name, target in names.items()
            if target not in own and target not in head and not name.endswith(COUNTER)
        ),
        reshaped=tuple(n for n in wanted if n in offered and n not in fitting),
        replaced=tuple(head),
        stem=stem,
    )
    _check_loaded(network, report, min_loaded)
    network.load_state_dict(fitting, strict=False)
    old = {name.removeprefix(f"{head_name}."): tensor for name, tensor in head.items()}
    return report, OldHead(old, checkpoint.class_names)


def match_names(names: Iterable[str], wanted: Iterable[str], head_name: str) -> dict[str, str]:
    """Return for each name in a file the name in the network, or the same name where none fits.

    Known prefixes are stripped one by one until a name of the network, or one in its head, is
    found. A name that fits as it is comes before one that has to be stripped.
    """
    wanted, names = set(wanted), list(names)
    matches = {name: name for name in names if name in wanted or _inside(name, head_name)}
    taken = set(matches.values())
    for name in names:
        if name in matches:
            continue
        target = next((s for s in _stripped(name) if s in wanted or _inside(s, head_name)), name)
        # MMPretrain has the backbone's classifier in a module of its own: head.fc.weight
        inner = _stripped(name)[-1].removeprefix("head.")
        if target == name and _inside(inner, head_name):
            target = inner
        matches[name] = name if target in taken else target
        taken.add(target)
    return {name: matches[name] for name in names}


@torch.no_grad()
def keep_rows(head: nn.Linear, old: OldHead, class_names: Sequence[str]) -> KeptRows:
    """Copy the weights of the classes that both heads have, and return these classes' names.

    Where the old head's classes are not known, it is kept whole ("all") if it has as many.

    Args:
        head: the new linear layer, whose outputs are `class_names` in order.
        old: the head that came with the weights; nothing is kept of one that is no linear layer, or
            of another width.
        class_names: empty where they are not known.
    """
    matrices = [name for name, tensor in old.tensors.items() if _is_matrix(tensor)]
    if len(matrices) != 1 or len(old.tensors) > 2:  # noqa: PLR2004  # weight and bias
        return ()
    weight = old.tensors[matrices[0]].flatten(1)
    biases = [tensor for name, tensor in old.tensors.items() if name != matrices[0]]
    bias = biases[0] if biases else weight.new_zeros(1).expand(len(weight))
    if weight.shape[1] != head.in_features or bias.shape != weight.shape[:1]:
        return ()
    if not old.class_names:
        if weight.shape != head.weight.shape:
            return ()
        head.weight.copy_(weight)
        head.bias.copy_(bias)
        return "all"
    if len(old.class_names) != len(weight):
        return ()
    kept = tuple(name for name in class_names if old.class_names.count(name) == 1)
    for name in kept:
        new_row, old_row = class_names.index(name), old.class_names.index(name)
        head.weight[new_row] = weight[old_row]
        head.bias[new_row] = bias[old_row]
    return kept


def keep_whole(head: nn.Module, old: OldHead, class_names: Sequence[str]) -> KeptRows:
    """Load the old head into one of the same kind, if it has the same shapes and classes.

    Args:
        head: any module; its outputs are `class_names` in order.
        old: the head that came with the weights; one whose classes are not known may have the same.
        class_names: empty where they are not known.
    """
    own = head.state_dict()
    if old.class_names and old.class_names != tuple(class_names):
        return ()
    if own.keys() != old.tensors.keys() or not all(_fits(old.tensors[n], own[n]) for n in own):
        return ()
    head.load_state_dict(old.tensors)
    return "all"


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a convolution's weight (O, I, h, w) for images of another number of channels.

    With fewer channels in the weight than wanted they are repeated in turn, each divided by how
    often it is used; with more they are summed in turn. Either way an image whose channels are all
    equal gives the same output as before, up to rounding.
    """
    inputs = weight.shape[1]
    if inputs < channels:
        source = torch.arange(channels) % inputs
        used = torch.bincount(source, minlength=inputs)
        return weight[:, source] / used[source].view(1, -1, 1, 1)
    target = torch.arange(inputs) % channels
    shape = (weight.shape[0], channels, *weight.shape[2:])
    return weight.new_zeros(shape).index_add(1, target, weight)


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
    prefixes = {n.removesuffix(_stripped(n)[-1]): None for n in checkpoint.tensors}
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
    return sorted(name for name in names if not HARMLESS.fullmatch(name))


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
            f" ({_first(imports)}). Nothing was run. The safer way: where you trust the file, save"
            " its weights alone, torch.save(network.state_dict(), 'weights.pth'). Or set"
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


def _adapt_stem(network: nn.Module, offered: dict[str, Tensor]) -> str:
    """Fit the first convolution's weight in `offered` to the network's channels, and say so."""
    layers = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, stem = next(layers, ("", None))
    weight = offered.get(f"{name}.weight")
    if stem is None or weight is None or weight.ndim != stem.weight.ndim or stem.groups > 1:
        return ""
    (outputs, inputs, *kernel), channels = weight.shape, stem.in_channels
    if inputs == channels or (outputs, *kernel) != (stem.out_channels, *stem.kernel_size):
        return ""
    if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
        return ""  # a small tensor that is expanded to fill all memory
    offered[f"{name}.weight"] = adapt_channels(weight.float(), channels)
    how = "repeated" if inputs < channels else "summed"
    return f"stem: {inputs} input channel{'s' * (inputs > 1)} {how} to {channels}"


def _check_loaded(network: nn.Module, report: LoadReport, min_loaded: float) -> None:
    """Refuse or warn where not all of the backbone was loaded."""
    problems = report.problems()
    if not problems:
        return
    modules = {name for name, _ in network.named_children()}
    # ResNet-34's file fills ResNet-18 whole; that half of the file is left over tells them apart.
    astray = [n for n in report.unexpected if modules & {s.split(".")[0] for s in _stripped(n)}]
    loaded = sum(not name.endswith(COUNTER) for name in report.loaded)  # they fit any batch norm
    there = loaded + len(report.missing) + len(report.reshaped) + len(astray)
    share = loaded / max(there, 1)
    if share < min_loaded:
        raise CheckpointError(
            f"model.min_loaded: at least {min_loaded:g} of the backbone's tensors must come from"
            f" '{report.source}', but {loaded} of {there} do ({share:.2f}). {problems}."
            " Choose the model.backbone that these weights were saved from, or lower"
            " model.min_loaded if this is what you want."
        )
    logger.warning("'%s' was not loaded completely: %s", report.source, problems)


def _stripped(name: str) -> list[str]:
    """Return a name, and what is left of it as one known prefix after the other is removed."""
    names = [name]
    while prefix := next((p for p in PREFIXES if names[-1].startswith(p)), ""):
        names.append(names[-1].removeprefix(prefix))
    return names


def _first(names: Sequence[str]) -> str:
    """Return the number of names and the first ones."""
    more = ", …" * (len(names) > NAMES_SHOWN)
    return f"{len(names)} ({', '.join(names[:NAMES_SHOWN])}{more})"


def _fits(offered: Tensor, own: Tensor) -> bool:
    return offered.shape == own.shape and offered.is_floating_point() == own.is_floating_point()


def _is_matrix(tensor: Tensor) -> bool:
    """Return whether a tensor is the weight of a linear layer or of a 1 x 1 convolution."""
    flat = tensor.ndim >= MATRIX and set(tensor.shape[MATRIX:]) <= {1}
    return flat and tensor.is_floating_point()


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _inside(tensor_name: str, module_name: str) -> bool:
    return tensor_name.startswith(module_name + ".")
