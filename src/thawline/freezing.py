"""Say what is trainable, keep the rest exactly as it is, and prove it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline.backbones import head_name
from thawline.errors import ParameterError, TrainingError, did_you_mean
from thawline.options import LastStages, Phase

HEAD = "head"
LARGE = 0.8  # a module with more of the backbone's parameters is looked into for its stages


@dataclass
class Stage:
    """A run of modules that is frozen or trained as one.

    Attributes:
        modules: dotted names of its modules.
        parameters: dotted names of its parameters.
    """

    modules: list[str] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)


def find_stages(network: nn.Module) -> dict[str, Stage]:
    """Return the stages of a network by name, from its input to its head.

    A stage is a child of the network that has layers of its own; a child that holds nearly all of
    the backbone (`features`, `blocks`, `encoder`) is replaced by its children. Single layers before
    the first stage are the `stem`, those after a stage belong to it. So a ResNet has stem, layer1
    to layer4 and head, and timm's EfficientNet stem, blocks.0 to blocks.6 and head.
    """
    head = head_name(network)
    in_head = {f"{head}.{name}" for name, _ in network.get_submodule(head).named_parameters()}
    stages = {"stem": Stage()}
    current = "stem"
    for name, module in _units(network, head):
        own = [f"{name}.{n}" for n, _ in module.named_parameters()]
        rest = [n for n in own if n not in in_head]
        layered = any(True for child in module.children() for _ in child.parameters())
        if layered and rest:
            current = name
        stage = stages.setdefault(current, Stage())
        stage.parameters += rest
        if len(rest) == len(own):
            stage.modules.append(name)
    placed = in_head.union(*(stage.parameters for stage in stages.values()))
    bare = [name for name, _ in network.named_parameters() if name not in placed]
    stages["stem"].parameters += bare  # class tokens and position embeddings
    if not stages["stem"].parameters:
        empty = stages.pop("stem")
        next(iter(stages.values()), Stage()).modules[:0] = empty.modules
    last = stages.pop(HEAD, Stage())  # timm's ConvNeXt has a norm beside the classifier in `head`
    stages[HEAD] = Stage([*last.modules, head], [*last.parameters, *sorted(in_head)])
    return stages


def freeze_layers(network: nn.Module, phase: Phase) -> None:
    """Make exactly the phase's parameters trainable and set every module's mode for training.

    What is frozen runs in evaluation mode: ``requires_grad=False`` alone does not stop batch norm
    from updating its running statistics, nor dropout from dropping. The mode of the trainable
    part's batch norm is `phase.batch_norm`.

    Raises:
        ParameterError: when a name in `phase.trainable` matches nothing.
    """
    stages = find_stages(network)
    trainable = _trainable_names(network, stages, phase)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)
    network.train()
    for stage in stages.values():
        if not trainable.intersection(stage.parameters):
            for name in stage.modules:
                network.get_submodule(name).eval()
    for module in network.modules():
        parameters = list(module.parameters())
        frozen = bool(parameters) and not any(p.requires_grad for p in parameters)
        if frozen or (phase.batch_norm == "eval" and isinstance(module, _BatchNorm)):
            module.eval()


def parameter_groups(network: nn.Module, phase: Phase) -> list[dict[str, Any]]:
    """Return an optimizer group for each stage with trainable parameters, with its learning rate.

    The head has `phase.lr`, each stage further down `phase.lr_decay` times the rate of the one
    above it (discriminative learning rates, Howard and Ruder 2018, arXiv:1801.06146).

    Raises:
        ParameterError: when `phase.stage_lr` names no stage.
    """
    stages = find_stages(network)
    for name in phase.stage_lr:
        if name not in stages:
            raise ParameterError(
                f"strategies: stage_lr names '{name}', which is no stage of this network"
                f"{did_you_mean(name, stages)} (stages: {', '.join(stages)})."
            )
    groups = []
    for depth, (name, stage) in enumerate(reversed(stages.items())):
        parameters = [network.get_parameter(n) for n in stage.parameters]
        trainable = [p for p in parameters if p.requires_grad]
        if trainable:
            lr = phase.stage_lr.get(name, phase.lr * phase.lr_decay**depth)
            groups.append({"params": trainable, "lr": lr, "name": name})
    return groups


def freeze_report(network: nn.Module, phases: Sequence[Phase]) -> pd.DataFrame:
    """Return a row a phase and stage: parameters, trainable ones, learning rate, batch-norm mode.

    The network is left as the first phase needs it.
    """
    rows = []
    for number, phase in reversed(list(enumerate(phases, start=1))):
        freeze_layers(network, phase)
        rates = {group["name"]: group["lr"] for group in parameter_groups(network, phase)}
        for name, stage in reversed(find_stages(network).items()):
            parameters = [network.get_parameter(n) for n in stage.parameters]
            rows.append(
                {
                    "phase": number,
                    "stage": name,
                    "parameters": sum(p.numel() for p in parameters),
                    "trainable": sum(p.numel() for p in parameters if p.requires_grad),
                    "lr": rates.get(name, 0.0),
                    "batch_norm": _batch_norm_mode(network, stage),
                }
            )
    return pd.DataFrame(rows[::-1])


def frozen_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return what training must not change: frozen parameters, and buffers in evaluation mode."""
    frozen = {n: p.data for n, p in network.named_parameters() if not p.requires_grad}
    for prefix, module in network.named_modules():
        if not module.training:
            for name, buffer in module.named_buffers(prefix, recurse=False):
                frozen[name] = buffer
    return frozen


def hash_tensors(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes, types and bytes of tensors, whatever their order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def check_frozen(network: nn.Module, sha256_before: str, phase_number: int) -> dict[str, Any]:
    """Return the record of the freeze contract of one phase.

    Raises:
        TrainingError: when a frozen tensor is not what it was before, to the bit.
    """
    frozen = frozen_tensors(network)
    sha256_after = hash_tensors(frozen)
    if sha256_after != sha256_before:
        raise TrainingError(
            f"Freeze contract broken in phase {phase_number}: a frozen parameter or buffer changed"
            f" (SHA-256 {sha256_before} before, {sha256_after} after). Something in the network"
            " writes to its own weights or statistics while it is frozen."
        )
    return {
        "phase": phase_number,
        "frozen_tensors": len(frozen),
        "sha256_before": sha256_before,
        "sha256_after": sha256_after,
    }


def _units(network: nn.Module, head: str) -> list[tuple[str, nn.Module]]:
    """Return the children of the network, the largest replaced by its own where it is nearly all.

    The module that the head is in is looked into only where there is no other.
    """
    units = list(network.named_children())
    while True:
        beside = [0 if f"{head}.".startswith(f"{n}.") else _size(m) for n, m in units]
        sizes = beside if any(beside) else [_size(m) for _, m in units]
        largest = max(range(len(units)), key=sizes.__getitem__)
        name, module = units[largest]
        inner = [(f"{name}.{n}", child) for n, child in module.named_children()]
        if (
            name == head
            or sizes[largest] <= LARGE * sum(sizes)
            or not any(_size(m) for _, m in inner)
        ):
            return units
        units[largest : largest + 1] = inner


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _trainable_names(network: nn.Module, stages: dict[str, Stage], phase: Phase) -> set[str]:
    """Return the names of the parameters that a phase trains."""
    everything = [name for name, _ in network.named_parameters()]
    if phase.trainable == "all":
        return set(everything)
    if isinstance(phase.trainable, LastStages):
        chosen = list(stages.values())[-phase.trainable.last :]
        return {name for stage in chosen for name in stage.parameters}
    names: set[str] = set()
    for pattern in phase.trainable:
        matches = (
            stages[pattern].parameters
            if pattern in stages
            else [name for name in everything if fnmatchcase(name, pattern)]
            or [name for name in everything if fnmatchcase(name, f"{pattern}.*")]
        )
        if not matches:
            raise ParameterError(
                f"strategies: trainable names '{pattern}', which matches no stage and no parameter"
                f" of this network{did_you_mean(pattern, stages)} (stages: {', '.join(stages)})."
            )
        names.update(matches)
    return names


def _batch_norm_mode(network: nn.Module, stage: Stage) -> str:
    """Return train, eval, mixed, or nothing where a stage has no batch norm."""
    owners = {name.rpartition(".")[0] for name in stage.parameters}
    norms = [m for m in map(network.get_submodule, owners) if isinstance(m, _BatchNorm)]
    modes = {"train" if norm.training else "eval" for norm in norms}
    return modes.pop() if len(modes) == 1 else "mixed" if modes else ""
