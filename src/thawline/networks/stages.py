"""Derive the stages of a network: what is frozen or trained as one, from its input to its head."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thawline.networks.building import head_name

HEAD = "head"
LARGE = 0.8  # a module with more of the backbone's parameters is looked into for its stages
MIN_SIBLINGS = (
    3  # so many modules of one class side by side are the stages, however large the last is
)
MANY = 10  # with more modules than that side by side, each is a block and no stage
SHRINKING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)  # with a stride

Units = list[tuple[str, nn.Module]]


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
    the first stage are the `stem`, those after a stage belong to it, but pooling and dropout right
    before the classifier to the head. So a ResNet has stem, layer1 to layer4 and head, and timm's
    EfficientNet stem, blocks.0 to blocks.6 and head.

    Where that yields single layers (VGG) or more than ten blocks (MobileNetV2), a stage is what
    works at one size of image, and has the name of its first module: stem, features.2, features.4,
    features.7, features.14 and head. Blocks of one size throughout (ViT) are a stage each.
    """
    head = head_name(network)
    everything = [name for name, _ in network.named_parameters()]
    in_head = [name for name in everything if name.startswith(f"{head}.")]
    beside_head = [name for name in everything if name not in in_head]
    stages = {"stem": Stage()}
    current = "stem"
    units = _units(network, head)
    starts = _starts(units, head)
    for name, module in units:
        current = name if name in starts else current
        stage = stages.setdefault(current, Stage())
        stage.parameters += [n for n in beside_head if n.startswith(f"{name}.")]
        stage.modules += _beside_head(name, module, head)
    placed = {name for stage in stages.values() for name in stage.parameters}
    bare = [name for name in beside_head if name not in placed]
    stages["stem"].parameters += bare  # class tokens and position embeddings
    if not stages["stem"].parameters:
        empty = stages.pop("stem")
        next(iter(stages.values()), Stage()).modules[:0] = empty.modules
    last = stages.pop(HEAD, Stage())  # timm's ConvNeXt has a norm beside the classifier in `head`
    before = next(reversed(stages.values()), Stage()).modules
    while before and not _size(network.get_submodule(before[-1])):
        last.modules.insert(0, before.pop())
    stages[HEAD] = Stage([*last.modules, head], [*last.parameters, *in_head])
    return stages


def stage_table(network: nn.Module, size: int) -> pd.DataFrame:
    """Return a row a stage: its parameters, its output and its share of the computation.

    The columns are stage, parameters, output (the shape of what the stage yields for one image,
    such as 512×7×7; nothing where it has no module, but parameters alone) and compute (its share,
    from 0 to 1, of the multiply-adds of one forward pass). The network is left as it is.

    Args:
        network: on the CPU.
        size: px, side of the images that it will see.
    """
    stages = find_stages(network)
    outputs = dict.fromkeys(stages, "")
    operations = dict.fromkeys(stages, 0)
    counter = FlopCounterMode(display=False)

    def note(stage: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[stage] = _shape(output)
        # What was computed between two modules, in the network's own forward, counts for the later.
        operations[stage] += counter.get_total_flops() - sum(operations.values())

    # Other ways to compute attention are not counted: the fused ones of a CPU not in PyTorch 2.11,
    # and the one without gradients in no version.
    probe = copy.deepcopy(network).eval().requires_grad_()
    for name, stage in stages.items():
        for module in (m for unit in stage.modules for m in probe.get_submodule(unit).modules()):
            module.register_forward_hook(functools.partial(note, name))
    with counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        probe(torch.zeros(1, 3, size, size))
    total = counter.get_total_flops()
    operations[HEAD] += total - sum(operations.values())
    rows = [
        {
            "stage": name,
            "parameters": sum(network.get_parameter(n).numel() for n in stage.parameters),
            "output": outputs[name],
            "compute": operations[name] / total,
        }
        for name, stage in stages.items()
    ]
    return pd.DataFrame(rows)


def _units(network: nn.Module, head: str) -> Units:
    """Return the children of the network, the largest replaced by its own where it is nearly all.

    The module that the head is in is looked into only where there is no other.
    """
    units = list(network.named_children())
    while True:
        beside = [(n, m) for n, m in units if not _holds(n, head) and _size(m)]
        layered = [(n, m) for n, m in beside or units if n != head and _is_layered(m)]
        if not layered:
            return units
        name, largest = max(layered, key=lambda unit: _size(unit[1]))
        alike = sum(type(module) is type(largest) for _, module in layered)
        is_stage = alike >= MIN_SIBLINGS and not isinstance(largest, nn.ModuleList)
        if is_stage or _size(largest) <= LARGE * sum(_size(module) for _, module in layered):
            return units
        position = units.index((name, largest))
        units[position : position + 1] = [(f"{name}.{n}", m) for n, m in largest.named_children()]


def _starts(units: Units, head: str) -> list[str]:
    """Return the names of the units that a stage begins with."""
    layered = [
        name
        for name, module in units
        if name != head and _is_layered(module) and (name == HEAD or _weighs(name, module, head))
    ]
    beside = [name for name in layered if not _holds(name, head)]
    if 0 < len(beside) <= MANY:
        return layered
    shrinking = _where_images_shrink(units)
    return shrinking + [name for name in layered if name not in beside] if shrinking else layered


def _where_images_shrink(units: Units) -> list[str]:
    """Return the units, but the first, that have a stride or follow pooling that has one."""
    starts: list[str] = []
    pooled = False
    weighted = [(name, module, _size(module) > 0) for name, module in units]
    first = next((name for name, _, weighs in weighted if weighs), None)
    for name, module, weighs in weighted:
        strided = any(
            isinstance(m, SHRINKING) and m.stride not in (1, (1, 1)) for m in module.modules()
        )
        if weighs and (strided or pooled) and name != first:
            starts.append(name)
        pooled = not weighs and (strided or pooled)
    return starts


def _beside_head(name: str, module: nn.Module, head: str) -> list[str]:
    """Return a unit's name, or those of the children beside the head where the head is in it."""
    if not _holds(name, head):
        return [name]
    children = [f"{name}.{n}" for n, _ in module.named_children()] if name != head else []
    return [child for child in children if not _holds(child, head)]


def _holds(name: str, head: str) -> bool:
    """Return whether a module is the head or has it within."""
    return f"{head}.".startswith(f"{name}.")


def _is_layered(module: nn.Module) -> bool:
    """Return whether a module has children with parameters, so that it is no single layer."""
    return any(True for child in module.children() for _ in child.parameters())


def _weighs(name: str, module: nn.Module, head: str) -> bool:
    """Return whether a unit has weights beside the head; those of a norm alone do not count."""
    return any(
        parameter.ndim > 1 and not f"{name}.{n}".startswith(f"{head}.")
        for n, parameter in module.named_parameters()
    )


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _shape(output: Any) -> str:
    """Return the shape of one image's tensor, or of each where there are several."""
    if isinstance(output, Tensor):
        return "×".join(map(str, output.shape[1:]))
    parts = output if isinstance(output, (tuple, list)) else ()
    return ", ".join(filter(None, map(_shape, parts)))
