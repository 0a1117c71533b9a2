"""The pooled outputs of all stages of a network, as the input of its head."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from thawline.networks.stages import HEAD, find_stages

MAPS, TOKENS = 4, 3  # dimensions of (N, C, H, W) or (N, H, W, C), and of (N, L, C)
GRID = 3  # by which maps keep where in the image something is


class AllStages(nn.Module):
    """Features of all stages of a network, at the place of its classifier.

    In a forward pass, hooks on the stages hand over their outputs; then the network calls this
    module with the features of its last layer (Evci et al. 2022, Head2Toe, arXiv:2201.03529).

    Attributes:
        stage_of: the stage, by the name of each module that is hooked.
        widths: number of features of each stage, in their order; known after a forward pass.
        values: how many features a channel of each stage has.
    """

    def __init__(self, network: nn.Module) -> None:
        """Place the hooks; the network will contain this module."""
        super().__init__()
        stages = {name: stage for name, stage in find_stages(network).items() if name != HEAD}
        self.stage_of = {module: name for name, s in stages.items() for module in s.modules}
        self.widths: dict[str, int] = {}
        self.values: dict[str, int] = {}
        self._last = next(reversed(self.stage_of.values()), HEAD)
        self._outputs: dict[str, Tensor] = {}
        for module in self.stage_of:
            hook = partial(self._receive, module)
            network.get_submodule(module).register_forward_hook(hook)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, F) float32 of what the stages handed over and the last layer's (N, width).

        They are means over the cells of a grid and the maximum over all positions, of the last
        stage the maximum alone: the last layer has its mean already.
        """
        outputs, self._outputs = self._outputs, {}
        everything = {**outputs, HEAD: features.float()}
        self.widths = self.widths or {name: part.shape[1] for name, part in everything.items()}
        return torch.cat([everything[name] for name in self.widths], dim=1)

    def note(self, module: str, output: Any) -> None:
        """Receive the output of a module; a stage has that of its last one."""
        if (stage := self.stage_of.get(module)) is not None:
            self._outputs[stage] = pool(output, with_means=stage != self._last)
            if isinstance(own := first_tensor(output), Tensor):  # not while the network is traced
                self.values[stage] = {MAPS: GRID**2 + 1, TOKENS: 2}.get(own.ndim, 1)

    def means(self, features: Tensor) -> dict[str, Tensor]:
        """Return of features (N, F) the means (N, C) over all positions, of the last layer's too.

        They are by stage, but those of the last layer take the place of the last stage.
        """
        parts = dict(zip(self.widths, features.split([*self.widths.values()], dim=1), strict=True))
        found = {}
        for stage in [*parts][:-2]:
            cells = parts[stage].unflatten(1, (self.values[stage], -1))
            found[stage] = cells[:, : max(1, self.values[stage] - 1)].mean(dim=1)
        return {**found, self._last: parts[HEAD]}

    def _receive(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.note(name, output)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, which is no output of an earlier pass."""
        return {**self.__dict__, "_outputs": {}}


@fx.wrap
def pool(output: Any, with_means: bool = True) -> Tensor:
    """Return (N, 10 C) float32: means over the cells of a 3 × 3 grid, and the maximum over all.

    Without means (N, C), the maximum alone. The output is (N, C, H, W) or (N, H, W, C), tokens
    (N, L, C), which have one mean over all, or (N, C), which stays as it is; or a tuple that begins
    with it, as that of attention.
    """
    output = first_tensor(output)
    means = []
    if output.ndim == MAPS:
        is_channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        maps = output.permute(0, 3, 1, 2) if is_channels_last else output
        # Unlike adaptive pooling, means keep no values for the backward pass, which a layer in
        # place may overwrite; nor does max, unlike amax.
        cells = [maps[:, :, i, j] for i in _thirds(maps.shape[2]) for j in _thirds(maps.shape[3])]
        means = [cell.mean(dim=(2, 3), dtype=torch.float32) for cell in cells if with_means]
        output = maps.flatten(2).mT
        if maps.is_cpu and not maps.requires_grad:  # the same maximum, up to ten times as fast
            output = functional.max_pool2d(maps, maps.shape[2:]).flatten(2).mT
    elif output.ndim == TOKENS:
        means = [output.mean(dim=1, dtype=torch.float32)] if with_means else []
    else:
        return output.float()
    maximum = output.max(dim=1).values if output.requires_grad else output.amax(dim=1)
    return torch.cat([*means, maximum.float()], dim=1)


def first_tensor(output: Any) -> Tensor:
    """Return a stage's output, the first of several."""
    return output[0] if isinstance(output, (tuple, list)) else output


def _thirds(side: int) -> list[slice]:
    """Return the cells along a side, which overlap where it cannot be divided."""
    return [slice(side * i // GRID, -(-side * (i + 1) // GRID)) for i in range(GRID)]


def find_all_stages(network: nn.Module) -> AllStages | None:
    """Return the module of this class in a network, if it has one."""
    return next((m for m in network.modules() if isinstance(m, AllStages)), None)
