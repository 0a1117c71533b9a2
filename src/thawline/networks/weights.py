"""Load pretrained weights into a network so that nothing is lost in silence."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from thawline.errors import CheckpointError
from thawline.networks.checkpoints import MATRIX, Checkpoint, first_of, without_prefixes

logger = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"  # BatchNorm's; old files lack it, inference never reads it

KeptRows = tuple[str, ...] | Literal["all"]


@dataclass(frozen=True)
class PretrainedHead:
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
            parts.append(f"the head's rows kept of {first_of(self.kept_rows)}")
        return "; ".join(parts)

    def problems(self) -> str:
        """Return counts and first names of what was not loaded, or nothing."""
        found = {
            "missing": self.missing,
            "unexpected": self.unexpected,
            "of another shape": self.reshaped,
        }
        return "; ".join(f"{what}: {first_of(names)}" for what, names in found.items() if names)


def load_backbone(
    network: nn.Module, head_name: str, checkpoint: Checkpoint, min_loaded: float
) -> tuple[LoadReport, PretrainedHead]:
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
    return report, PretrainedHead(old, checkpoint.class_names)


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
        target = next(
            (s for s in without_prefixes(name) if s in wanted or _inside(s, head_name)), name
        )
        # MMPretrain has the backbone's classifier in a module of its own: head.fc.weight
        inner = without_prefixes(name)[-1].removeprefix("head.")
        if target == name and _inside(inner, head_name):
            target = inner
        matches[name] = name if target in taken else target
        taken.add(target)
    return {name: matches[name] for name in names}


@torch.no_grad()
def keep_rows(head: nn.Linear, old: PretrainedHead, class_names: Sequence[str]) -> KeptRows:
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


def keep_whole(head: nn.Module, old: PretrainedHead, class_names: Sequence[str]) -> KeptRows:
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
    astray = [
        n for n in report.unexpected if modules & {s.split(".")[0] for s in without_prefixes(n)}
    ]
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
