"""Cut a traced network into the part below the thaw line and the part above it."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import timm.layers
import torch
from torch import Tensor, fx, nn
from torch.nn.utils import fuse_conv_bn_eval

from thawline.errors import first_line

FEW, MANY = 2, 4  # images in two batches, which tell a batch's size from a constant
TOLERANCE = 1e-3  # of the largest output; folding batch norm rounds differently
# A subclass may do anything after it normalizes, so only these are folded: timm's also activate.
TIMM_BATCH_NORMS = (timm.layers.BatchNormAct2d, timm.layers.SyncBatchNormAct)
FOLDABLE = {nn.BatchNorm2d, nn.SyncBatchNorm, *TIMM_BATCH_NORMS}
PLAIN = (nn.Conv2d, timm.layers.Conv2dSame)  # a subclass may compute its weight in each pass
CONSTANTS = (int, float, str, type(None), torch.dtype, torch.device, torch.memory_format)

Values = tuple[Any, Any]  # of a node, for `FEW` and for `MANY` images


class CannotSplitError(Exception):
    """Why a network cannot be split."""


@contextmanager
def refusing(reason: str) -> Iterator[None]:
    """Turn whatever a user's forward may raise into a `CannotSplitError`."""
    try:
        yield
    except Exception as error:  # a forward may raise anything, the more so without real tensors
        raise CannotSplitError(f"{reason} ({first_line(error)})") from error


@contextmanager
def restoring(network: nn.Module) -> Iterator[None]:
    """Restore buffers and the random state in the end, which passes in training change."""
    buffers = {buffer: buffer.clone() for buffer in network.buffers()}
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for buffer, value in buffers.items():
            buffer.copy_(value)


def copy_nodes(nodes: Sequence[fx.Node], outputs: Sequence[fx.Node]) -> fx.Graph:
    """Return a graph of some nodes of another; it yields a tuple of the outputs."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in outputs))
    return graph


def copy_below(
    network: nn.Module, nodes: Sequence[fx.Node], boundary: Sequence[fx.Node]
) -> fx.GraphModule:
    """Return the part below the line, a copy that later training does not change."""
    part = _make_module(network, copy_nodes(nodes, boundary))
    return copy.deepcopy(part).eval().requires_grad_(False)


def find_above(
    network: nn.Module, graph: fx.Graph, boundary: Sequence[fx.Node], values: Mapping[str, Values]
) -> fx.GraphModule:
    """Return the part above the line in one of the two modes, with the network's own modules.

    The tensors of `boundary` cross the line; `values` are of the nodes below it, by name.
    """
    above = fx.Graph()
    copies: dict[str, Any] = {node.name: above.placeholder(node.name) for node in boundary}
    size = above.call_method("size", (copies[boundary[0].name], 0))
    for node in graph.nodes:
        if node.name not in values:
            copies[node.name] = above.node_copy(node, lambda n: _to_nodes(copies[n.name]))
        elif node.name not in copies and any(user.name not in values for user in node.users):
            (copies[node.name],) = stand_in(*values[node.name], fx.Proxy(size))
    return _make_module(network, above)


def stand_in(few: Any, many: Any, batch_size: Any) -> Any:
    """Return what replaces a value above the line, in a tuple, or None if nothing can.

    Tensors of the batch cross the line; constants are repeated; sizes follow from `batch_size`.
    """
    if isinstance(few, Tensor):
        return () if (len(few), len(many)) == (FEW, MANY) else None
    if isinstance(few, (tuple, list)):
        parts = [stand_in(a, b, batch_size) for a, b in zip(few, many, strict=True)]
        has_tensor = any(isinstance(a, Tensor) for a in few)
        return None if has_tensor or None in parts else (tuple(part[0] for part in parts),)
    if isinstance(few, CONSTANTS) and few == many:
        return (few,)
    if isinstance(few, int) and few * MANY == many * FEW and few % FEW == 0:
        return (batch_size * (few // FEW),)
    return None


class ConvBatchNorm(nn.Module):
    """A convolution, and the batch norm after it that keeps its statistics, in one pass.

    The weights have the same gradients to rounding; the normalization costs no pass of its own.
    """

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
        """Take modules that stay those of the network."""
        super().__init__()
        self.conv, self.norm = conv, norm

    def forward(self, images: Tensor) -> Tensor:
        """Return what the normalization returns for what the convolution returns."""
        conv, norm = self.conv, self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        mean = norm.running_mean if conv.bias is None else norm.running_mean - conv.bias
        folded = {
            "weight": conv.weight * scale[:, None, None, None],
            "bias": norm.bias - mean * scale,
        }
        output: Tensor = torch.func.functional_call(conv, folded, (images,))
        return output


def fold_batch_norm(part: fx.GraphModule) -> None:
    """Fold every batch norm that follows a convolution into the convolution's weights."""
    for source, conv, target, norm in _foldable(part):
        part.set_submodule(source, fuse_conv_bn_eval(conv.eval(), norm))
        part.set_submodule(target, _rest(norm))


def fold_kept_batch_norm(part: fx.GraphModule) -> fx.GraphModule:
    """Return a part whose convolutions include the batch norm after them that keeps its statistics.

    It shares modules and parameters with `part`, which stays as it is.
    """
    graph = fx.Graph()
    graph.output(graph.graph_copy(part.graph, {}))
    folded = _make_module(part, graph)
    for source, conv, target, norm in _foldable(folded):
        own = dict(conv.named_parameters(recurse=False))
        is_plain = type(conv) in PLAIN and "weight" in own  # not made anew from other parameters
        if not norm.training and norm.affine and is_plain:
            folded.set_submodule(source, ConvBatchNorm(conv, norm))
            folded.set_submodule(target, _rest(norm))
    return folded


def _foldable(part: fx.GraphModule) -> Iterator[tuple[str, nn.Conv2d, str, nn.BatchNorm2d]]:
    """Yield name and module of each convolution and of the batch norm that alone follows it."""
    modules = dict(part.named_modules())
    calls = [node for node in part.graph.nodes if node.op == "call_module"]
    used = [node.target for node in calls]
    for node in calls:
        norm = modules[node.target]
        if type(norm) not in FOLDABLE or norm.running_mean is None or not node.args:
            continue
        source = node.args[0]
        conv = modules.get(source.target) if source.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or len(source.users) > 1:
            continue
        if used.count(source.target) == used.count(node.target) == 1:  # else they share weights
            yield source.target, conv, node.target, norm


def _rest(norm: Any) -> nn.Module:
    """Return what a batch norm does beside normalizing."""
    return nn.Sequential(norm.drop, norm.act) if type(norm) in TIMM_BATCH_NORMS else nn.Identity()


def check_parts(network: nn.Module, below: nn.Module, above: nn.Module, images: Tensor) -> None:
    """Refuse parts whose outputs differ from the network's, for instance by writes in place."""
    with refusing(f"it fails for {len(images)} images"):
        with restoring(network):
            torch.manual_seed(0)  # the same noise above the line in both
            expected = network(images)
        with restoring(network):
            torch.manual_seed(0)
            found = above(*below(images))
    error = (found - expected).abs().max().item()
    if not error <= TOLERANCE * max(1.0, expected.abs().max().item()):
        raise CannotSplitError(f"the two parts' outputs differ from its own by {error:.2g}")


def _make_module(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return a graph as a module that shares the network's modules and parameters."""
    module = fx.GraphModule(network, graph, type(network).__name__)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _to_nodes(value: Any) -> Any:
    """Return an argument of a node, with nodes in place of proxies."""
    return fx.node.map_aggregate(value, lambda v: v.node if isinstance(v, fx.Proxy) else v)
