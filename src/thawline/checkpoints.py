"""Read files of pretrained weights safely, and load them so that nothing is lost in silence."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from thawline.errors import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIX = "module."  # left behind by DataParallel


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors, by what became of them."""

    source: str
    loaded: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return one line for the log."""
        if not self.loaded:
            return f"weights: {self.source}"
        head = f"; replaced by a new head: {', '.join(self.replaced)}" if self.replaced else ""
        return f"weights: {len(self.loaded)} backbone tensors loaded from {self.source}{head}"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors in a .safetensors file or in a pickled state dict, by name.

    A dict that wraps the state dict under `state_dict`, `model_state_dict` or `model` is opened,
    and the prefix `module.` dropped. Nothing in the file is executed (``weights_only=True``).

    Raises:
        CheckpointError: when the file is absent, cannot be read, or holds no state dict.
    """
    if not path.is_file():
        raise CheckpointError(f"model.weights: there is no file '{path}'.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"model.weights: '{path}' cannot be read as a state dict ({reason}). Save one with"
            " torch.save(network.state_dict(), path)."
        ) from error
    except Exception as error:  # safetensors' own error derives from Exception alone
        if type(error).__name__ != "SafetensorError":
            raise
        raise CheckpointError(
            f"model.weights: '{path}' is no safetensors file ({error})."
        ) from error
    while isinstance(content, dict) and (wrapper := _wrapper_of(content)):
        content = content[wrapper]
    if not isinstance(content, dict) or not any(isinstance(t, Tensor) for t in content.values()):
        raise CheckpointError(
            f"model.weights: '{path}' holds no state dict (a {type(content).__name__} instead)."
        )
    tensors = {str(name): t for name, t in content.items() if isinstance(t, Tensor)}
    if all(name.startswith(PREFIX) for name in tensors):
        return {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    return tensors


def load_backbone(network: nn.Module, head_name: str, path: Path) -> LoadReport:
    """Load every backbone tensor of `network` from a file; its head is left as it is.

    Args:
        network: the architecture that the file belongs to, with its original head.
        head_name: dotted name of that head, whose tensors in the file are reported as replaced.
        path: see `read_state_dict`.

    Raises:
        CheckpointError: when a backbone tensor is missing, left over, or of another shape.
    """
    tensors = read_state_dict(path)
    wanted = {n: t for n, t in network.state_dict().items() if not _inside(n, head_name)}
    offered = {n: t for n, t in tensors.items() if not _inside(n, head_name)}
    # Old files lack BatchNorm's step counter, which inference never reads.
    missing = [n for n in wanted if n not in offered and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in offered if n not in wanted]
    reshaped = [n for n in wanted if n in offered and wanted[n].shape != offered[n].shape]
    if missing or unexpected or reshaped:
        problems = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
        listed = "; ".join(
            f"{len(names)} {what} ({', '.join(names[:3])}{', …' * (len(names) > 3)})"  # noqa: PLR2004
            for what, names in problems.items()
            if names
        )
        raise CheckpointError(
            f"model.weights: '{path}' does not fit model.backbone: {listed}. Choose the backbone"
            " that these weights were saved from."
        )
    network.load_state_dict(offered, strict=False)
    return LoadReport(
        source=str(path),
        loaded=tuple(offered),
        replaced=tuple(name for name in tensors if name not in offered),
    )


def _wrapper_of(content: dict[str, Any]) -> str | None:
    return next((key for key in WRAPPERS if isinstance(content.get(key), dict)), None)


def _inside(tensor_name: str, module_name: str) -> bool:
    return tensor_name.startswith(module_name + ".")
