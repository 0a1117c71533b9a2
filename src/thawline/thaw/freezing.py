"""Say what is trainable, keep the rest exactly as it is, and prove it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import pandas as pd
import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from thawline.errors import ParameterError, TrainingError, did_you_mean
from thawline.networks.stages import Stage, find_stages
from thawline.options import LastStages, Phase, Strategy

# As torchvision's transformers and ConvNeXts name what timm's name in `no_weight_decay()`.
UNDECAYED = (
    "*pos_embed*", "*class_token", "*relative_position_bias_table", "*layer_scale", "*logit_scale",
)  # fmt: skip


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


def find_unknown_names(network: nn.Module, strategies: Mapping[str, Strategy]) -> list[str]:
    """Return a line for each name in strategies that no stage and no parameter of a network has.

    Args:
        network: only its structure counts; its tensors may be on the meta device.
        strategies: by name.
    """
    stages = find_stages(network)
    known, problems = f"(stages: {', '.join(stages)})", []
    for strategy, options in strategies.items():
        for number, phase in enumerate(options.phases):
            place = f"strategies.{strategy}.phases.{number}"
            patterns = phase.trainable if isinstance(phase.trainable, tuple) else ()
            problems += [
                f"{place}.trainable: '{pattern}' matches no stage and no parameter of this network"
                f"{did_you_mean(pattern, stages)} {known}"
                for pattern in patterns
                if not _matches(network, stages, pattern)
            ]
            problems += [
                f"{place}.stage_lr: '{name}' is no stage of this network"
                f"{did_you_mean(name, stages)} {known}"
                for name in phase.stage_lr
                if name not in stages
            ]
    return problems


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


def find_undecayed(network: nn.Module) -> set[str]:
    """Return the names of the trainable parameters that weight decay leaves alone.

    These are, by timm's rule, biases, the scales of norms and whatever else has one dimension, and
    what a network names in `no_weight_decay()`; beside them position embeddings, tokens and scales
    of torchvision's transformers, which have no such method.
    """
    own: Any = getattr(network, "no_weight_decay", set)
    names = [name for name, _ in network.named_parameters()]
    listed = [n for n in names if any(fnmatchcase(n, p) for p in (*own(), *UNDECAYED))]
    groups = param_groups_weight_decay(network, weight_decay=1.0, no_weight_decay_list=listed)
    kept = {id(p) for group in groups if not group["weight_decay"] for p in group["params"]}
    return {name for name, parameter in network.named_parameters() if id(parameter) in kept}


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
        matches = _matches(network, stages, pattern)
        if not matches:
            raise ParameterError(
                f"strategies: trainable names '{pattern}', which matches no stage and no parameter"
                f" of this network{did_you_mean(pattern, stages)} (stages: {', '.join(stages)})."
            )
        names.update(matches)
    return names


def _matches(network: nn.Module, stages: dict[str, Stage], pattern: str) -> list[str]:
    """Return the parameters of a stage, or those that a glob matches by themselves or above."""
    if pattern in stages:
        return stages[pattern].parameters
    everything = [name for name, _ in network.named_parameters()]
    return [name for name in everything if fnmatchcase(name, pattern)] or [
        name for name in everything if fnmatchcase(name, f"{pattern}.*")
    ]


def _batch_norm_mode(network: nn.Module, stage: Stage) -> str:
    """Return train, eval, mixed, or nothing where a stage has no batch norm."""
    owners = {name.rpartition(".")[0] for name in stage.parameters}
    norms = [m for m in map(network.get_submodule, owners) if isinstance(m, _BatchNorm)]
    modes = {"train" if norm.training else "eval" for norm in norms}
    return modes.pop() if len(modes) == 1 else "mixed" if modes else ""
