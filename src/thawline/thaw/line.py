"""Find the thaw line of a network, below which nothing changes in a phase, and split it there.

A node of the traced graph lies below the line when it and all that it depends on hold no trainable
parameter and behave alike in every pass: dropout is off, batch norm uses its running statistics. So
the line follows from `requires_grad` and the modules' modes, whatever the freeze pattern.
"""

from __future__ import annotations

import copy
import logging
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import timm.layers
import torch
import torchvision
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from thawline.thaw.device import use_full_float32

logger = logging.getLogger(__name__)

FEW, MANY = 2, 4  # images in the two batches that tell a batch's size from a constant
SAMPLES = 1024  # values of a tensor, at most about, that the two batches are compared by
TOLERANCE = 1e-3  # of the largest output; folding batch norm rounds differently
CONSTANTS = (int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)


class ThawLine(NamedTuple):
    """A network in two parts; those above hold its own modules, so that to train them trains it.

    Attributes:
        below: from images (N, 3, size, size) to a tuple of the tensors (N, …) that cross the line,
            in evaluation mode, without gradients, with batch norm folded into convolutions; None
            where the images themselves cross it.
        above_train: from those tensors to outputs (N, C), as the network is in training.
        above_eval: the same in evaluation.
        boundary: names in the graph of what crosses.
    """

    below: fx.GraphModule | None
    above_train: nn.Module
    above_eval: nn.Module
    boundary: tuple[str, ...] = ("images",)


class _CannotSplitError(Exception):
    """Why a network cannot be split."""


def split_at_thaw_line(network: nn.Module, size: int) -> ThawLine:
    """Return the two parts of a network, which is left as it is.

    Where its forward cannot be traced (because it depends on values in its tensors, say), or where
    the parts do not add up to it, all of it lies above the line and a warning says why.

    Args:
        network: with `requires_grad` and modes as a phase needs them, on any device.
        size: px, side of the images that it will see.
    """
    whole = ThawLine(None, network, network)
    if all(parameter.requires_grad for parameter in network.parameters()):
        return whole
    use_full_float32()  # TF32 would differ by more than the tolerance
    modes = {module: module.training for module in network.modules()}
    try:
        with torch.no_grad():
            return _split(network, size, modes) or whole
    except _CannotSplitError as reason:
        logger.warning("The whole network, frozen part too, runs in every epoch: %s", reason)
        return whole
    finally:
        _set_modes(modes)


def _split(network: nn.Module, size: int, modes: dict[nn.Module, bool]) -> ThawLine | None:
    """Return the split network, or None where nothing that is frozen comes first."""
    in_training = _trace(network)
    settled = {node.name for node in in_training.nodes if _is_settled(network, node)}
    _set_modes(dict.fromkeys(modes, False))
    in_evaluation = _trace(network)
    # Where a forward branches on its mode, only what comes before the branch can lie below.
    shared = [
        node
        for node, twin in _common_start(in_training, in_evaluation)
        if node.name in settled and node.format_node() == twin.format_node()
    ]
    images = _noise(network, size)
    few, many = (_record(network, shared, images[:count]) for count in (FEW, MANY))
    below = _closed(
        n for n in shared if n.name in few and _repeats_itself(few[n.name], many[n.name])
    )
    while stuck := {n for n in _crossing(below) if _stand_in(few[n.name], many[n.name], 1) is None}:
        below = _closed(n for n in below if n not in stuck)
    tensors = [n for n in _crossing(below) if isinstance(few[n.name], Tensor)]
    if all(n.op == "placeholder" for n in tensors):
        return None
    names = {n.name for n in below}
    values = {name: (few[name], many[name]) for name in names}
    part = _below(network, below, tensors)
    line = ThawLine(
        part,
        _above(network, in_training, names, tensors, values),
        _above(network, in_evaluation, names, tensors, values),
        tuple(n.name for n in tensors),
    )
    _set_modes(modes)
    _check(network, part, line.above_train, images)
    _set_modes(dict.fromkeys(modes, False))
    _check(network, part, line.above_eval, images)
    _fold_batch_norm(part)  # not before: training normalizes rounding by the spread of 4 images
    _check(network, part, line.above_eval, images)
    return line


def modules_below_line(network: nn.Module, crossing: Iterable[str]) -> dict[str, bool]:
    """Return for each module and bare parameter that a forward uses whether it is below a line.

    They come in the order of the forward; there are none where it cannot be traced.

    Args:
        network: with the modes that the line was found with.
        crossing: names in the graph of what crosses, as in `ThawLine.boundary`.
    """
    try:
        graph = _trace(network)
    except _CannotSplitError:
        return {}
    below: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.name in {*crossing}]
    while waiting:
        node = waiting.pop()
        if node not in below:
            below.add(node)
            waiting += node.all_input_nodes
    used = (node for node in graph.nodes if node.op in ("call_module", "get_attr"))
    return {str(node.target): node in below for node in used}


class _Tracer(fx.Tracer):
    """Leaves alone what timm says cannot be traced, and modules without children."""

    def __init__(self) -> None:
        functions = tuple(timm.layers.get_notrace_functions())
        super().__init__((math, torchvision.ops), functions)
        self.opaque = tuple(timm.layers.get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one node; what drops paths by its mode must be."""
        childless = next(m.children(), None) is None
        return childless or isinstance(m, self.opaque) or super().is_leaf_module(m, "")


def _trace(network: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(network)
    except Exception as error:  # whatever a forward may raise when it is given no real tensors
        name = type(network).__name__
        raise _CannotSplitError(f"{name} cannot be traced ({_first_line(error)})") from error


def _is_settled(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node itself holds nothing trainable and no module that its mode changes."""
    if node.op == "get_attr":
        return not _attribute(network, str(node.target)).requires_grad
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        return not any(p.requires_grad for p in module.parameters()) and not any(
            m.training and _reads_mode(type(m)) for m in module.modules()
        )
    return node.op != "output"


def _reads_mode(kind: type[nn.Module]) -> bool:
    """Return whether any method of a class, beside `nn.Module`'s own, looks at `self.training`."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = (value for c in classes for value in vars(c).values() if hasattr(value, "__code__"))
    return any("training" in method.__code__.co_names for method in methods)


def _common_start(first: fx.Graph, second: fx.Graph) -> Iterable[tuple[fx.Node, fx.Node]]:
    """Yield pairs of nodes up to the first that are of another name or kind."""
    for node, twin in zip(first.nodes, second.nodes, strict=False):
        if (node.name, node.op, node.target) != (twin.name, twin.op, twin.target):
            return
        yield node, twin


def _closed(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return the nodes all of whose inputs are among them too; they come in the graph's order."""
    kept: dict[fx.Node, None] = {}
    for node in nodes:
        if all(source in kept for source in node.all_input_nodes):
            kept[node] = None
    return list(kept)


def _crossing(below: Sequence[fx.Node]) -> list[fx.Node]:
    inside = set(below)
    return [node for node in below if any(user not in inside for user in node.users)]


def _record(network: nn.Module, nodes: Sequence[fx.Node], images: Tensor) -> dict[str, Any]:
    """Return what each node yields for a batch, by its name: a sample where it is a tensor."""
    values: dict[str, Any] = {}

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            values[n.name] = _sample(value) if isinstance(value, Tensor) else value
            return value

    with torch.random.fork_rng():
        torch.manual_seed(len(images))  # noise is another one in each of the two batches
        try:
            Recorder(fx.GraphModule(network, _graph(_closed(nodes), []))).run(images)
        except Exception as error:  # whatever a forward may raise
            reason = f"it fails for {images.shape[2]} px ({_first_line(error)})"
            raise _CannotSplitError(reason) from error
    return values


def _sample(tensor: Tensor) -> Tensor:
    """Return some values of each image (N, about `SAMPLES`) without a copy of all."""
    rows = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
    return rows[:, :: max(1, rows.shape[1] // SAMPLES)].clone()


def _repeats_itself(few: Any, many: Any) -> bool:
    """Return whether a value holds no noise; whatever depends on the batch's size may pass."""
    if not isinstance(few, Tensor) or (len(few), len(many)) != (FEW, MANY):
        return True
    return torch.allclose(few.float(), many[:FEW].float(), rtol=1e-3, atol=1e-4)


def _stand_in(few: Any, many: Any, batch_size: Any) -> Any:
    """Return what takes a crossing value's place above, in a tuple, or None if nothing can.

    Tensors of the batch cross as they are; constants are repeated; sizes follow from `batch_size`.
    """
    if isinstance(few, Tensor):
        return () if (len(few), len(many)) == (FEW, MANY) else None
    if isinstance(few, (tuple, list)):
        parts = [_stand_in(a, b, batch_size) for a, b in zip(few, many, strict=True)]
        is_tensor = any(isinstance(a, Tensor) for a in few)
        return None if is_tensor or None in parts else (tuple(part[0] for part in parts),)
    if isinstance(few, CONSTANTS) and few == many:
        return (few,)
    if isinstance(few, int) and few * MANY == many * FEW and few % FEW == 0:
        return (batch_size * (few // FEW),)
    return None


def _graph(nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.Graph:
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return graph


def _below(
    network: nn.Module, nodes: Sequence[fx.Node], tensors: Sequence[fx.Node]
) -> fx.GraphModule:
    """Return the part below the line, a copy that no later training reaches."""
    return copy.deepcopy(_module(network, _graph(nodes, tensors))).eval().requires_grad_(False)


def _above(
    network: nn.Module,
    graph: fx.Graph,
    below: set[str],
    tensors: Sequence[fx.Node],
    values: dict[str, tuple[Any, Any]],
) -> fx.GraphModule:
    """Return the part above the line in one of the two modes."""
    above = fx.Graph()
    copies: dict[str, Any] = {n.name: above.placeholder(n.name) for n in tensors}
    size = above.call_method("size", (copies[tensors[0].name], 0))
    for node in graph.nodes:
        if node.name in below:
            if node.name not in copies and any(user.name not in below for user in node.users):
                (copies[node.name],) = _stand_in(*values[node.name], fx.Proxy(size))
        else:
            copies[node.name] = above.node_copy(node, lambda n: _plain(copies[n.name]))
    return _module(network, above)


def _module(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a graph as a module that shares the network's own modules and parameters."""
    module = fx.GraphModule(network, graph, type(network).__name__)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _plain(value: Any) -> Any:
    """Return a value as an argument of a node: proxies, in tuples too, become their nodes."""
    return fx.node.map_aggregate(value, lambda v: v.node if isinstance(v, fx.Proxy) else v)


def _fold_batch_norm(part: fx.GraphModule) -> None:
    """Put every batch norm that follows a convolution into its weights."""
    modules = dict(part.named_modules())
    calls = [n for n in part.graph.nodes if n.op == "call_module"]
    used = [n.target for n in calls]
    for node in calls:
        norm, source = modules[node.target], node.args[0]
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        conv = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(source.users) > 1:
            continue
        if used.count(source.target) > 1 or used.count(node.target) > 1:  # shared weights
            continue
        part.set_submodule(source.target, fuse_conv_bn_eval(conv.eval(), norm))
        # timm's batch norm holds the activation that follows it
        rest = (
            nn.Sequential(*norm.children())
            if isinstance(norm, timm.layers.BatchNormAct2d)
            else nn.Identity()
        )
        part.set_submodule(node.target, rest)


def _check(network: nn.Module, below: nn.Module, above: nn.Module, images: Tensor) -> None:
    """Refuse parts that do not add up to the network as it is, for instance by writes in place."""
    statistics = {buffer: buffer.clone() for buffer in network.buffers()}
    with torch.random.fork_rng():
        try:
            torch.manual_seed(0)  # noise above the line is the same in both
            expected = network(images)
            _restore(statistics)
            torch.manual_seed(0)
            found = above(*below(images))
        except Exception as failure:  # whatever a forward may raise
            reason = f"it fails for {len(images)} images ({_first_line(failure)})"
            raise _CannotSplitError(reason) from failure
        finally:
            _restore(statistics)
    error = (found - expected).abs().max().item()
    if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise _CannotSplitError(f"its two parts differ from it by {error:.2g}")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _set_modes(modes: dict[nn.Module, bool]) -> None:
    for module, training in modes.items():
        module.training = training


def _restore(values: dict[Tensor, Tensor]) -> None:
    """Give tensors their values back: batch norm in training moves its statistics."""
    for tensor, value in values.items():
        tensor.copy_(value)


def _noise(network: nn.Module, size: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(MANY, 3, size, size, generator=generator)
    return noise.to(next(network.parameters()))


def _attribute(network: nn.Module, name: str) -> Any:
    return operator.attrgetter(name)(network)
