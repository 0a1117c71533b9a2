"""Load a weights file into a network, and report what became of each tensor."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from thawline.errors import CheckpointError, summarize_names
from thawline.networks.checkpoints import Checkpoint, without_prefixes
from thawline.networks.heads import KeptRows, PretrainedHead, same_kind

logger = logging.getLogger(__name__)

COUNTER = "num_batches_tracked"  # of batch norm; old files lack it, and inference ignores it


@dataclass(frozen=True)
class LoadReport:
    """Names of tensors, by what became of them."""

    source: str  # the file, or the name of a library's weights
    loaded: tuple[str, ...] = ()  # backbone tensors that came from the file
    missing: tuple[str, ...] = ()  # backbone tensors that the file lacks
    unexpected: tuple[str, ...] = ()  # tensors in the file that the network lacks
    reshaped: tuple[str, ...] = ()  # of another shape or kind of number; not loaded
    replaced: tuple[str, ...] = ()  # tensors of the pretrained head that a new head replaced
    kept_rows: KeptRows = ()  # classes whose weights the new head has from the pretrained one
    stem: str = ""  # how the first convolution was adapted to another number of channels

    def __str__(self) -> str:
        """Return one line for the log."""
        count = f"{len(self.loaded)} backbone tensors loaded from " if self.loaded else ""
        parts = [f"Weights: {count}{self.source}", self.problems(), self.stem]
        if self.replaced:
            parts.append(f"replaced by a new head: {', '.join(self.replaced)}")
        if self.kept_rows == "all":
            parts.append("pretrained head kept")
        elif self.kept_rows:
            parts.append(f"head weights kept for {summarize_names(self.kept_rows)}")
        return "; ".join(filter(None, parts))

    def problems(self) -> str:
        """Return counts and first names of what was not loaded, or nothing."""
        titles = ("missing", "unexpected", "of another shape")
        found = zip(titles, (self.missing, self.unexpected, self.reshaped), strict=True)
        return "; ".join(f"{title}: {summarize_names(names)}" for title, names in found if names)


def load_backbone(
    network: nn.Module, head: str, checkpoint: Checkpoint, min_loaded: float
) -> tuple[LoadReport, PretrainedHead]:
    """Load a checkpoint's backbone tensors, and return what became of each, and the file's head.

    The network's tensors keep their types, and its first convolution its number of channels.

    Raises:
        CheckpointError: if the file provides less than the fraction `min_loaded` (0 to 1) of the
            tensors outside `head`, a dotted name; the network is unchanged. Unexpected tensors
            inside the network's own modules count as not provided.
    """
    state = network.state_dict().items()
    own = {n: t for n, t in state if isinstance(t, Tensor) and not _inside(n, head)}
    names = match_names(checkpoint.tensors, own, head)
    offered = {target: checkpoint.tensors[name] for name, target in names.items()}
    stem = _adapt_stem(network, offered)
    in_head = {n: t for n, t in offered.items() if _inside(n, head)}
    fitting = {n: t for n, t in offered.items() if n in own and same_kind(t, own[n])}
    # safetensors keeps one name of tensors that share memory (tied weights).
    filled = {_memory(own[n]) for n in fitting}
    loaded = [n for n in own if n in fitting or (n not in offered and _memory(own[n]) in filled)]
    lost = [n for n in own if n not in loaded and not n.endswith(COUNTER)]
    extra = [n for n, t in names.items() if t not in own and t not in in_head]
    report = LoadReport(
        source=str(checkpoint.path),
        loaded=tuple(loaded),
        missing=tuple(n for n in lost if n not in offered),
        unexpected=tuple(n for n in extra if not n.endswith(COUNTER)),
        reshaped=tuple(n for n in lost if n in offered),
        replaced=tuple(in_head),
        stem=stem,
    )
    _check_loaded(network, report, min_loaded)
    network.load_state_dict(fitting, strict=False)
    pretrained = {name.removeprefix(f"{head}."): tensor for name, tensor in in_head.items()}
    return report, PretrainedHead(pretrained, checkpoint.class_names)


def match_names(names: Iterable[str], wanted: Iterable[str], head: str) -> dict[str, str]:
    """Map each name in a file to a name in the network, or to itself if none fits.

    Known prefixes are removed until a name fits. One that fits unchanged takes precedence.
    """
    wanted, names = set(wanted), list(names)

    def fits(name: str) -> bool:
        return name in wanted or _inside(name, head)

    taken = {name for name in names if fits(name)}
    matches = {}
    for name in names:
        shortened = without_prefixes(name)
        in_head = shortened[-1].removeprefix("head.")  # MMPretrain's head.fc.weight
        target = next(filter(fits, shortened), in_head if _inside(in_head, head) else name)
        matches[name] = name if target in taken else target
        taken.add(matches[name])
    return matches


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Convert a convolution's weight (O, I, h, w) to another number of input channels.

    Missing channels repeat the present ones, divided by how often each is used; surplus channels
    are summed. An image with equal channels gives the same output as before, up to rounding.
    """
    inputs = weight.shape[1]
    idx = torch.arange(max(inputs, channels))
    mixing = weight.new_zeros(inputs, channels)
    mixing[idx % inputs, idx % channels] = 1
    mixing /= mixing.sum(dim=1, keepdim=True)  # divide an input that is repeated
    return torch.einsum("oihw,ic->ochw", weight, mixing)


def _adapt_stem(network: nn.Module, offered: dict[str, Tensor]) -> str:
    """Adapt the first convolution's weight in `offered` to the network, and describe the change."""
    layers = ((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    name, stem = next(layers, ("", None))
    weight = offered.get(f"{name}.weight")
    if stem is None or weight is None or weight.ndim != stem.weight.ndim or stem.groups > 1:
        return ""
    (outputs, inputs, *kernel), channels = weight.shape, stem.in_channels
    if inputs == channels or (outputs, *kernel) != (stem.out_channels, *stem.kernel_size):
        return ""
    if weight.numel() * weight.element_size() > weight.untyped_storage().nbytes():
        return ""  # a small tensor that is expanded to fill the memory
    offered[f"{name}.weight"] = adapt_channels(weight.float(), channels)
    how = "repeated" if inputs < channels else "summed"
    return f"stem: {inputs} input channel{'s' * (inputs > 1)} {how} to {channels}"


def _check_loaded(network: nn.Module, report: LoadReport, min_loaded: float) -> None:
    """Refuse a file that provides too little of the backbone; warn if it does not provide all."""
    problems = report.problems()
    if not problems:
        return
    modules = {name for name, _ in network.named_children()}
    # ResNet-34's file provides all of ResNet-18, but half of it remains unmatched.
    unmatched = [
        n for n in report.unexpected if modules & {s.split(".")[0] for s in without_prefixes(n)}
    ]
    loaded = sum(not name.endswith(COUNTER) for name in report.loaded)
    total = loaded + len(report.missing) + len(report.reshaped) + len(unmatched)
    fraction = loaded / max(total, 1)
    if fraction < min_loaded:
        raise CheckpointError(
            f"model.min_loaded: '{report.source}' provides {loaded} of {total} backbone tensors"
            f" ({fraction:.2f}), but at least {min_loaded:g} are required. {problems}. Set"
            " model.backbone to the network that these weights were saved from, or lower"
            " model.min_loaded."
        )
    logger.warning("'%s' was loaded incompletely: %s", report.source, problems)


def _memory(tensor: Tensor) -> tuple[int, torch.Size]:
    return tensor.data_ptr(), tensor.shape


def _inside(tensor: str, module: str) -> bool:
    return tensor.startswith(module + ".")
