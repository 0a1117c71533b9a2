"""Derive the stages of a network: parts that are frozen or trained together, from input to head."""

import copy
import functools
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from thawline.networks.heads import head_name

HEAD = "head"
MAX_STAGE_SHARE = 0.8  # of the backbone's parameters; a larger module is split into its children
MIN_SIBLINGS = 3  # modules of one class side by side are stages, whatever their size
MAX_STAGES = 10  # beyond that, each module is a block rather than a stage
STRIDED_LAYERS = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)

Units = list[tuple[str, nn.Module]]


@dataclass
class Stage:
    """Modules that are frozen or trained together."""

    modules: list[str] = field(default_factory=list)  # dotted names
    parameters: list[str] = field(default_factory=list)  # dotted names


def find_stages(network: nn.Module) -> dict[str, Stage]:
    """Return the stages of a network by name, from its input to its head.

    A stage is a child of the network that contains several layers. A child with most of the
    backbone's parameters (`features`, `blocks`, `encoder`) is split into its own children. Single
    layers before the first stage form the `stem`, and those after a stage belong to it. Pooling and
    dropout right before the classifier belong to the head. A ResNet has stem, layer1 to layer4 and
    head; timm's EfficientNet has stem, blocks.0 to blocks.6 and head.

    If this rule finds only single layers (VGG) or more than ten blocks (MobileNetV2), a stage is
    what works at one resolution, named by its first module: stem, features.2, features.4,
    features.7, features.14 and head. Blocks of one resolution throughout (ViT) are a stage each.
    """
    head = head_name(network)
    everything = [name for name, _ in network.named_parameters()]
    in_head = [name for name in everything if name.startswith(f"{head}.")]
    in_backbone = [name for name in everything if name not in in_head]
    stages, current = {"stem": Stage()}, "stem"
    units = _find_units(network, head)
    starts = _find_starts(units, head)
    for name, module in units:
        current = name if name in starts else current
        stage = stages.setdefault(current, Stage())
        stage.parameters += [n for n in in_backbone if n.startswith(f"{name}.")]
        is_split = name != head and _contains(name, head)
        called = _find_parts(name, module) if is_split else _find_called(name, module)
        stage.modules += [part for part in called if not _contains(part, head)]
    assigned = {name for stage in stages.values() for name in stage.parameters}
    # class tokens and position embeddings
    stages["stem"].parameters += [name for name in in_backbone if name not in assigned]
    if not stages["stem"].parameters:
        empty = stages.pop("stem")
        next(iter(stages.values()), Stage()).modules[:0] = empty.modules
    last = stages.pop(HEAD, Stage())  # timm's ConvNeXt has a norm beside the classifier in `head`
    before = next(reversed(stages.values()), Stage()).modules
    while before and not _count_parameters(network.get_submodule(before[-1])):
        last.modules.insert(0, before.pop())
    stages[HEAD] = Stage([*last.modules, head], [*last.parameters, *in_head])
    return stages


def stage_table(network: nn.Module, size: int) -> pd.DataFrame:
    """Return one row per stage of a network on the CPU, for images of `size` px.

    Returns:
        Columns stage, parameters (count), output (shape for one image, such as 512×7×7; empty for
        a stage without modules) and compute (0 to 1, share of a forward pass's multiply-adds).
    """
    stages = find_stages(network)
    outputs = dict.fromkeys(stages, "")
    operations = dict.fromkeys(stages, 0)
    counter = FlopCounterMode(display=False)

    def record(stage: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs[stage] = _format_shape(output)
        # Operations between two modules, in the network's own forward, count for the later one.
        operations[stage] += counter.get_total_flops() - sum(operations.values())

    probe = copy.deepcopy(network).eval().requires_grad_()
    for name, stage in stages.items():
        for module in (m for unit in stage.modules for m in probe.get_submodule(unit).modules()):
            module.register_forward_hook(functools.partial(record, name))
    # FlopCounterMode counts neither fused attention on a CPU (PyTorch 2.11), nor attention without
    # gradients.
    with counter, torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        probe(torch.zeros(1, 3, size, size))
    total = counter.get_total_flops()
    operations[HEAD] += total - sum(operations.values())
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    return pd.DataFrame(
        {
            "stage": [*stages],
            "parameters": [sum(sizes[n] for n in stage.parameters) for stage in stages.values()],
            "output": [*outputs.values()],
            "compute": [count / total for count in operations.values()],
        }
    )


def _find_units(network: nn.Module, head: str) -> Units:
    """Return the network's children, each one with most of the parameters split into its own.

    The module around the head is split only if there is no other.
    """
    units = list(network.named_children())
    while True:
        backbone = [(n, m) for n, m in units if not _contains(n, head) and _count_parameters(m)]
        layered = [(n, m) for n, m in backbone or units if n != head and _is_layered(m)]
        if not layered:
            return units
        sizes = [_count_parameters(module) for _, module in layered]
        name, largest = layered[sizes.index(max(sizes))]
        siblings = sum(type(module) is type(largest) for _, module in layered)
        is_stage = siblings >= MIN_SIBLINGS and not isinstance(largest, nn.ModuleList)
        if is_stage or max(sizes) <= MAX_STAGE_SHARE * sum(sizes):
            return units
        position = units.index((name, largest))
        units[position : position + 1] = [(f"{name}.{n}", m) for n, m in largest.named_children()]


def _find_called(name: str, module: nn.Module) -> list[str]:
    """Return the name of a module, or of its parts if it is a list of them, never called itself."""
    is_list = isinstance(module, (nn.ModuleList, nn.ModuleDict))
    return _find_parts(name, module) if is_list else [name]


def _find_parts(name: str, module: nn.Module) -> list[str]:
    """Return the names of the modules that a module calls."""
    return [part for n, m in module.named_children() for part in _find_called(f"{name}.{n}", m)]


def _find_starts(units: Units, head: str) -> list[str]:
    """Return the names of the units that a stage begins with."""

    def has_weights(unit: str, module: nn.Module) -> bool:
        parameters = ((f"{unit}.{name}", p) for name, p in module.named_parameters())
        return any(p.ndim > 1 and not name.startswith(f"{head}.") for name, p in parameters)

    layered = [
        name
        for name, module in units
        if name != head and _is_layered(module) and (name == HEAD or has_weights(name, module))
    ]
    in_backbone = [name for name in layered if not _contains(name, head)]
    if 0 < len(in_backbone) <= MAX_STAGES:
        return layered
    strided = _find_strided(units)
    return strided + [name for name in layered if name not in in_backbone] if strided else layered


def _find_strided(units: Units) -> list[str]:
    """Return the units, except the first, that lower the resolution or follow pooling that does."""
    starts: list[str] = []
    pooled, is_first = False, True
    for name, module in units:
        strided = any(
            isinstance(m, STRIDED_LAYERS) and m.stride not in (1, (1, 1)) for m in module.modules()
        )
        if not _count_parameters(module):
            pooled = strided or pooled
            continue
        if (strided or pooled) and not is_first:
            starts.append(name)
        pooled = is_first = False
    return starts


def _contains(name: str, head: str) -> bool:
    """Return whether a module is the head or contains it."""
    return f"{head}.".startswith(f"{name}.")


def _is_layered(module: nn.Module) -> bool:
    """Return whether a module has children with parameters, so that it is not a single layer."""
    return any(True for child in module.children() for _ in child.parameters())


def _count_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _format_shape(output: Any) -> str:
    """Return the shape of one image's tensor, or of each of several."""
    if isinstance(output, Tensor):
        return "×".join(map(str, output.shape[1:]))
    parts = output if isinstance(output, (tuple, list)) else ()
    return ", ".join(filter(None, map(_format_shape, parts)))
