"""Find the thaw line of a network, below which nothing changes in a phase.

A node of the traced graph lies below the line if it and all nodes that it depends on have no
trainable parameter and behave alike in every pass: dropout is off, batch norm uses its running
statistics. So the line follows from `requires_grad` and the modules' modes.
"""

import logging
import math
import operator
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import timm.layers
import torch
import torchvision
from torch import Tensor, fx, nn

from thawline.networks.all_stages import AllStages, find_all_stages
from thawline.thaw.cutting import (
    FEW,
    MANY,
    CannotSplitError,
    Values,
    check_parts,
    copy_below,
    copy_nodes,
    find_above,
    fold_batch_norm,
    refusing,
    restoring,
    stand_in,
)
from thawline.thaw.device import use_full_float32
from thawline.thaw.freezing import evaluation_mode

logger = logging.getLogger(__name__)

MAX_SAMPLES = 1024  # values per image, about, by which the two batches are compared


class ThawLine(NamedTuple):
    """A network in two parts.

    `below` makes of images (N, 3, size, size) a tuple of the tensors (N, …) that cross the line. It
    is in eval mode, without gradients, and its batch norm is folded into convolutions. The parts
    above make of these tensors outputs (N, C), and hold the network's own modules.
    """

    below: nn.Module | None  # with its `code`; None if the images themselves cross the line
    above_train: nn.Module  # as the network computes in training
    above_eval: nn.Module
    boundary: tuple[str, ...] = ("images",)  # names in the graph of the tensors that cross


def split_at_thaw_line(network: nn.Module, size: int) -> ThawLine:
    """Split a network, on any device, at its thaw line without modifying it.

    If tracing fails or the parts' outputs differ from the network's, warn and do not split. The
    network's `requires_grad` and modes are those of a phase; `size` is the images' side, in px.
    """
    whole = ThawLine(None, network, network)
    if all(parameter.requires_grad for parameter in network.parameters()):
        return whole
    use_full_float32()  # TF32 would differ by more than the tolerance
    try:
        with torch.no_grad(), restoring(network):
            return _split(network, size) or whole
    except CannotSplitError as reason:
        logger.warning("The network is not split and runs whole in every epoch: %s", reason)
        return whole


def modules_below_line(network: nn.Module, boundary: Collection[str]) -> dict[str, bool]:
    """Return for each module and bare parameter in a forward whether it is below a line.

    They come in the order of the forward; there are none if it cannot be traced. The network has
    the modes that the line was found with.
    """
    try:
        graph = _trace(network)
    except CannotSplitError:
        return {}
    below: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.name in boundary or not below.isdisjoint(node.users):
            below.add(node)
    used = (node for node in graph.nodes if node.op in ("call_module", "get_attr"))
    return {str(node.target): node in below for node in used}


def _split(network: nn.Module, size: int) -> ThawLine | None:
    """Return the split network, or None if no frozen layer comes first."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(MANY, 3, size, size, generator=generator).to(next(network.parameters()))
    train_graph = _trace(network)
    settled = {node.name for node in train_graph.nodes if _is_settled(network, node)}
    with evaluation_mode(network):
        eval_graph = _trace(network)
        shared = [node for node in _shared_start(train_graph, eval_graph) if node.name in settled]
        below, values = _find_below(network, shared, images)
        boundary = [n for n in _find_boundary(below) if isinstance(values[n.name][0], Tensor)]
        if all(node.op == "placeholder" for node in boundary):
            return None
        part = copy_below(network, below, boundary)
    above_train, above_eval = (
        find_above(network, graph, boundary, values) for graph in (train_graph, eval_graph)
    )
    check_parts(network, part, above_train, images)
    fold_batch_norm(part)  # after the check: in training, batch norm of 4 images amplifies rounding
    with evaluation_mode(network):
        check_parts(network, part, above_eval, images)
    return ThawLine(part, above_train, above_eval, tuple(node.name for node in boundary))


def _find_below(
    network: nn.Module, shared: Sequence[fx.Node], images: Tensor
) -> tuple[list[fx.Node], dict[str, Values]]:
    """Return the nodes below the line, and what they yield for the two batches."""
    values = _record(network, _closed(shared), images)
    below = _closed(n for n in shared if n.name in values and _repeats_itself(*values[n.name]))
    while stuck := {n for n in _find_boundary(below) if stand_in(*values[n.name], 1) is None}:
        below = _closed(node for node in below if node not in stuck)
    return below, {node.name: values[node.name] for node in below}


class _Tracer(fx.Tracer):
    """Leaves untraced what timm says cannot be traced, and modules without children."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__((math, torchvision.ops), tuple(timm.layers.get_notrace_functions()))
        self.opaque = tuple(timm.layers.get_notrace_modules())
        self.features = find_all_stages(network)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module is one node, as those that drop paths by their mode must be."""
        if isinstance(m, AllStages):
            return False
        has_no_children = next(m.children(), None) is None
        return has_no_children or isinstance(m, self.opaque) or super().is_leaf_module(m, "")

    def call_module(self, m: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Trace a module. The hooks of one node do not run, so its output is handed over here."""
        output, name = super().call_module(m, *args, **kwargs), self.path_of_module(m)
        if self.features and self.is_leaf_module(m, name):
            self.features.note(name, output)
        return output


def _trace(network: nn.Module) -> fx.Graph:
    with refusing(f"{type(network).__name__} cannot be traced"):
        return _Tracer(network).trace(network)


def _is_settled(network: nn.Module, node: fx.Node) -> bool:
    """Return whether a node itself has nothing trainable and no module that its mode changes."""
    if node.op == "get_attr":
        return not operator.attrgetter(str(node.target))(network).requires_grad
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        is_frozen = not any(p.requires_grad for p in module.parameters())
        return is_frozen and not any(m.training and _reads_mode(type(m)) for m in module.modules())
    return node.op != "output"


def _reads_mode(kind: type[nn.Module]) -> bool:
    """Return whether a method of a class, beside those of `nn.Module`, reads `self.training`."""
    classes = kind.__mro__[: kind.__mro__.index(nn.Module)]
    methods = (value for c in classes for value in vars(c).values() if hasattr(value, "__code__"))
    return any("training" in method.__code__.co_names for method in methods)


def _shared_start(train_graph: fx.Graph, eval_graph: fx.Graph) -> Iterable[fx.Node]:
    """Yield the nodes that are the same in both modes, up to where a forward branches on it."""
    for node, twin in zip(train_graph.nodes, eval_graph.nodes, strict=False):
        if (node.name, node.op, node.target) != (twin.name, twin.op, twin.target):
            return
        if node.format_node() == twin.format_node():
            yield node


def _closed(nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """Return, in the graph's order, the nodes whose inputs are all among them."""
    kept: dict[fx.Node, None] = {}
    for node in nodes:
        if all(source in kept for source in node.all_input_nodes):
            kept[node] = None
    return list(kept)


def _find_boundary(below: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the nodes below that a node above uses."""
    inside = set(below)
    return [node for node in below if any(user not in inside for user in node.users)]


def _record(network: nn.Module, nodes: Sequence[fx.Node], images: Tensor) -> dict[str, Values]:
    """Return what each node yields for `FEW` and for `MANY` images, by its name."""
    recorded: list[dict[str, Any]] = []

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            recorded[-1][n.name] = _sample(value) if isinstance(value, Tensor) else value
            return value

    module = fx.GraphModule(network, copy_nodes(nodes, []))
    for count in (FEW, MANY):
        recorded.append({})
        torch.manual_seed(count)  # other noise in each of the two batches
        with refusing(f"it fails for {images.shape[2]} px"):
            Recorder(module).run(images[:count])
    few, many = recorded
    return {node.name: (few[node.name], many[node.name]) for node in nodes}


def _sample(tensor: Tensor) -> Tensor:
    """Return some values of each image (N, about `MAX_SAMPLES`) without a copy of all."""
    rows = tensor.reshape(len(tensor), -1) if tensor.ndim else tensor.reshape(1, 1)
    return rows[:, :: max(1, rows.shape[1] // MAX_SAMPLES)].clone()


def _repeats_itself(few: Any, many: Any) -> bool:
    """Return whether a value has no noise; what depends on the batch's size may pass."""
    if not isinstance(few, Tensor) or (len(few), len(many)) != (FEW, MANY):
        return True
    return torch.allclose(few.float(), many[:FEW].float(), rtol=1e-3, atol=1e-4)
