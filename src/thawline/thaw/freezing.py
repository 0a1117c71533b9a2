"""Set what is trainable, keep the rest exactly as it is, and prove it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from thawline.errors import ParameterError, TrainingError, did_you_mean
from thawline.networks.stages import HEAD, Stage, find_stages
from thawline.options import LastStages, LoraStages, Phase, Strategy

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
MATRICES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.MultiheadAttention)


def freeze_layers(network: nn.Module, phase: Phase) -> None:
    """Set `requires_grad` and train or eval mode for one phase.

    Frozen modules run in eval mode, because `requires_grad=False` alone does not stop batch norm
    from updating its statistics or dropout from dropping activations. `phase.batch_norm` is the
    mode of trainable batch norm.

    Raises:
        ParameterError: when `phase.trainable` or `phase.stage_lr` names nothing in the network.
    """
    stages = find_stages(network)
    if problems := _unknown_names(network, stages, phase):
        raise ParameterError(f"strategies: {problems[0]}.")
    trainable = _trainable_names(network, stages, phase)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in trainable)
    network.train()
    frozen = (stage for stage in stages.values() if trainable.isdisjoint(stage.parameters))
    for name in chain.from_iterable(stage.modules for stage in frozen):
        network.get_submodule(name).eval()
    keeps_statistics = phase.batch_norm == "eval" or isinstance(phase.trainable, LoraStages)
    for module in network.modules():
        is_frozen = {p.requires_grad for p in module.parameters()} == {False}
        if is_frozen or (keeps_statistics and isinstance(module, BATCH_NORM)):
            module.eval()


@contextmanager
def evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Set a network to evaluation mode within the context.

    Afterwards each module has its own mode again, since `train()` would thaw frozen batch norms.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


def find_unknown_names(network: nn.Module, strategies: Mapping[str, Strategy]) -> list[str]:
    """Return a line for each name in strategies that the network, perhaps meta, does not have."""
    stages = find_stages(network)
    return [
        f"strategies.{name}.phases.{number}.{problem}"
        for name, strategy in strategies.items()
        for number, phase in enumerate(strategy.phases)
        for problem in _unknown_names(network, stages, phase)
    ]


def parameter_groups(network: nn.Module, phase: Phase) -> list[dict[str, Any]]:
    """Return an optimizer group for each stage with trainable parameters, the head first.

    The head has `phase.lr`, each stage further down `phase.lr_decay` times the rate of the one
    above it (discriminative learning rates, Howard and Ruder 2018, arXiv:1801.06146).
    """
    groups = []
    for depth, (name, stage) in enumerate(reversed(find_stages(network).items())):
        parameters = [network.get_parameter(n) for n in stage.parameters]
        trainable = [p for p in parameters if p.requires_grad]
        if trainable:
            lr = phase.stage_lr.get(name, phase.lr * phase.lr_decay**depth)
            groups.append({"params": trainable, "lr": lr, "name": name})
    return groups


def low_rank_sizes(network: nn.Module, phase: Phase) -> dict[nn.Parameter, int]:
    """Return each weight that a phase changes by a low-rank update, and the update's parameters.

    A weight (out, in, k, k) counts as a matrix (out, in·k·k). One that has no more numbers than its
    update, and every weight of the head, is trained in full. The network is frozen already.
    """
    if not isinstance(phase.trainable, LoraStages):
        return {}
    in_head = find_stages(network)[HEAD].parameters
    weights = [p for n, p in network.named_parameters() if p.requires_grad and n not in in_head]
    sizes = {p: phase.trainable.lora.rank * (len(p) + p[0].numel()) for p in weights}
    return {p: size for p, size in sizes.items() if size < p.numel()}


def freeze_report(network: nn.Module, phases: Sequence[Phase]) -> pd.DataFrame:
    """Return per phase and stage: parameters, trainable ones, learning rate, batch-norm mode.

    The network is left as the first phase needs it.
    """
    rows = []
    for number, phase in reversed(list(enumerate(phases, start=1))):
        freeze_layers(network, phase)
        rates = {group["name"]: group["lr"] for group in parameter_groups(network, phase)}
        updates = low_rank_sizes(network, phase)
        for name, stage in reversed(find_stages(network).items()):
            parameters = [network.get_parameter(n) for n in stage.parameters]
            total = sum(p.numel() for p in parameters)
            trainable = sum(updates.get(p, p.numel()) for p in parameters if p.requires_grad)
            mode = _batch_norm_mode(network, stage)
            rows.append((number, name, total, trainable, rates.get(name, 0.0), mode))
    columns = ["phase", "stage", "parameters", "trainable", "lr", "batch_norm"]
    return pd.DataFrame(rows[::-1], columns=columns)


def frozen_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return the tensors that must not change: frozen parameters, and buffers in eval mode."""
    frozen = {n: p.data for n, p in network.named_parameters() if not p.requires_grad}
    for prefix, module in network.named_modules():
        if not module.training:
            frozen |= dict(module.named_buffers(prefix, recurse=False))
    return frozen


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of tensors' names, shapes, dtypes and bytes, in any order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def check_frozen(network: nn.Module, sha256_before: str, phase_number: int) -> dict[str, Any]:
    """Return the record of the freeze contract of one phase.

    Raises:
        TrainingError: when a frozen tensor has changed by a single bit.
    """
    frozen = frozen_tensors(network)
    sha256_after = hash_tensors(frozen)
    if sha256_after != sha256_before:
        raise TrainingError(
            f"Freeze contract broken in phase {phase_number}: a frozen parameter or buffer changed"
            f" (SHA-256 {sha256_before} before, {sha256_after} after). The network's forward"
            " modifies its own weights or statistics."
        )
    return {
        "phase": phase_number,
        "frozen_tensors": len(frozen),
        "sha256_before": sha256_before,
        "sha256_after": sha256_after,
    }


def _trainable_names(network: nn.Module, stages: dict[str, Stage], phase: Phase) -> set[str]:
    """Return the names of the parameters that a phase trains."""
    if phase.trainable == "all":
        return {name for name, _ in network.named_parameters()}
    if isinstance(phase.trainable, LastStages):
        chosen = list(stages.values())[-phase.trainable.last :]
        return {name for stage in chosen for name in stage.parameters}
    if isinstance(phase.trainable, LoraStages):
        chosen = list(stages.values())[-phase.trainable.lora.stages :]
        names = {name for stage in chosen for name in stage.parameters}
        return names.intersection(_weight_matrices(network)).union(stages[HEAD].parameters)
    return {name for p in phase.trainable for name in _matches(network, stages, p)}


def _weight_matrices(network: nn.Module) -> list[str]:
    """Return the names of the weights of convolutions, linear layers and attention."""
    return [
        name
        for prefix, module in network.named_modules()
        if isinstance(module, MATRICES)
        for name, parameter in module.named_parameters(prefix, recurse=False)
        if parameter.ndim > 1
    ]


def _unknown_names(network: nn.Module, stages: dict[str, Stage], phase: Phase) -> list[str]:
    """Return a clause for each name in a phase that the network does not have."""
    patterns = phase.trainable if isinstance(phase.trainable, tuple) else ()
    unmatched = [name for name in patterns if not _matches(network, stages, name)]
    unknown = [("trainable", name, "stage or parameter") for name in unmatched]
    unknown += [("stage_lr", name, "stage") for name in phase.stage_lr if name not in stages]
    return [
        f"{key}: '{name}' matches no {kind} of this network{did_you_mean(name, stages)}"
        f" (stages: {', '.join(stages)})"
        for key, name, kind in unknown
    ]


def _matches(network: nn.Module, stages: dict[str, Stage], pattern: str) -> list[str]:
    """Return the parameters of a stage, of all norms, or those whose name or module a glob matches.

    A norm is what its class is called, since timm and others write their own.
    """
    if pattern in stages:
        return stages[pattern].parameters
    if pattern == "norms":
        modules = ((n, m) for n, m in network.named_modules() if "Norm" in type(m).__name__)
        return [name for n, m in modules for name, _ in m.named_parameters(n, recurse=False)]
    names = [name for name, _ in network.named_parameters()]
    return [n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"{pattern}.*")]


def _batch_norm_mode(network: nn.Module, stage: Stage) -> str:
    """Return train, eval or mixed, or nothing if a stage has no batch norm."""
    owners = {name.rpartition(".")[0] for name in stage.parameters}
    norms = [m for m in map(network.get_submodule, owners) if isinstance(m, BATCH_NORM)]
    modes = {"train" if norm.training else "eval" for norm in norms}
    return modes.pop() if len(modes) == 1 else "mixed" if modes else ""
