"""The pooled outputs of all stages of a network, as the input of its head."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from thawline.networks.stages import HEAD, find_stages

MAPS, TOKENS = 4, 3  # dimensions of (N, C, H, W) or (N, H, W, C), and of (N, L, C)


class AllStages(nn.Module):
    """Features of all stages of a network, at the place of its classifier.

    In a forward pass, hooks on the stages hand over their outputs; then the network calls this
    module with the features of its last layer (Evci et al. 2022, Head2Toe, arXiv:2201.03529).

    Attributes:
        stage_of: the stage, by the name of each module that is hooked.
        widths: number of features of each stage, in their order; known after a forward pass.
    """

    def __init__(self, network: nn.Module) -> None:
        """Place the hooks; the network will contain this module."""
        super().__init__()
        stages = {name: stage for name, stage in find_stages(network).items() if name != HEAD}
        self.stage_of = {module: name for name, s in stages.items() for module in s.modules}
        self.widths: dict[str, int] = {}
        self._last = next(reversed(self.stage_of.values()), HEAD)
        self._outputs: dict[str, Tensor] = {}
        for module in self.stage_of:
            hook = partial(self._receive, module)
            network.get_submodule(module).register_forward_hook(hook)

    def forward(self, features: Tensor) -> Tensor:
        """Return (N, F) float32 of what the stages handed over and the last layer's (N, width).

        They are the mean and the maximum over all positions, of the last stage the maximum alone:
        the last layer has its mean already.
        """
        outputs, self._outputs = self._outputs, {}
        everything = {**outputs, HEAD: features.float()}
        self.widths = self.widths or {name: part.shape[1] for name, part in everything.items()}
        return torch.cat([everything[name] for name in self.widths], dim=1)

    def note(self, module: str, output: Any) -> None:
        """Receive the output of a module; a stage has that of its last one."""
        if (stage := self.stage_of.get(module)) is not None:
            self._outputs[stage] = pool(output, stage != self._last)

    def _receive(self, name: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self.note(name, output)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs, which is no output of an earlier pass."""
        return {**self.__dict__, "_outputs": {}}


@fx.wrap
def pool(output: Any, with_mean: bool = True) -> Tensor:
    """Return (N, 2 C) float32, the mean and the maximum over all positions, or the maximum alone.

    The output is (N, C, H, W), (N, H, W, C), tokens (N, L, C) or (N, C), or a tuple that begins
    with it, as that of attention.
    """
    output = output[0] if isinstance(output, tuple) else output
    if output.ndim == MAPS:
        is_channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        output = output.flatten(1, 2) if is_channels_last else output.flatten(2).mT
    if output.ndim != TOKENS:
        return output.float()
    # Unlike amax, max keeps no values for the backward pass, which a layer in place may overwrite.
    maximum = output.max(dim=1).values if output.requires_grad else output.amax(dim=1)
    mean = output.mean(dim=1, dtype=torch.float32)
    return torch.cat([mean, maximum.float()], dim=1) if with_mean else maximum.float()


def find_all_stages(network: nn.Module) -> AllStages | None:
    """Return the module of this class in a network, if it has one."""
    return next((m for m in network.modules() if isinstance(m, AllStages)), None)
