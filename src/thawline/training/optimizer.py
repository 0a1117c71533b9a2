"""Move the weights: optimizer, learning-rate schedule, moving average and low-rank updates."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import nn

from thawline.options import LoraStages, Phase, TrainingOptions
from thawline.thaw.freezing import low_rank_sizes, parameter_groups

# Names in torchvision's transformers and ConvNeXts of what timm's name in `no_weight_decay()`.
UNDECAYED = (
    "*pos_embed*", "*class_token", "*relative_position_bias_table", "*layer_scale", "*logit_scale",
)  # fmt: skip


class LowRankUpdates(nn.Module):
    """Confine the change of some weights W in a phase to (alpha / rank) B A (LoRA, Hu et al. 2021).

    arXiv:2106.09685. For a linear layer or attention, A is (rank, in) and B (out, rank). For a
    convolution, A (rank, in·k·k) is a k×k convolution to `rank` channels and B a 1×1 convolution.
    After every update of A and B, the sum is in W itself, so the network is an ordinary one at any
    time, with nothing to merge. The gradients of A and B follow from that of W. (PEFT 0.21 requires
    transformers, renames the layers and cannot merge updates of grouped convolutions.)
    """

    def __init__(self, network: nn.Module, phase: Phase, seed: int) -> None:
        """Begin with B = 0, and with an A that depends on `seed`. The network is frozen already."""
        super().__init__()
        self._parts: list[tuple[nn.Parameter, ...]] = []  # W, W before the phase, A, B
        if isinstance(phase.trainable, LoraStages):
            rank, generator = phase.trainable.lora.rank, torch.Generator().manual_seed(seed)
            self._scale = phase.trainable.lora.alpha / rank
            for weight in low_rank_sizes(network, phase):
                down = torch.empty(rank, weight[0].numel())
                nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
                up = torch.zeros(len(weight), rank)
                tensors = weight.detach().clone(), down.to(weight), up.to(weight)
                self._parts.append((weight, *map(nn.Parameter, tensors)))
        self._state = nn.ParameterList(tensor for part in self._parts for tensor in part[1:])

    def replace(self, parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
        """Return parameters with A and B in the place of each weight that they update."""
        factors = {weight: (down, up) for weight, _, down, up in self._parts}
        return [factor for p in parameters for factor in factors.get(p, (p,))]

    @torch.no_grad()
    def split_gradients(self) -> None:
        """Turn the gradients of the weights into those of A and B, by the chain rule."""
        for weight, _, down, up in self._parts:
            if weight.grad is not None:
                gradient = self._scale * weight.grad.flatten(1)
                down.grad, up.grad, weight.grad = up.T @ gradient, gradient @ down.T, None

    @torch.no_grad()
    def merge(self) -> None:
        """Write to the network the sum of each weight before the phase and its update."""
        for weight, before, down, up in self._parts:
            merged = torch.addmm(before.flatten(1), up, down, alpha=self._scale)
            weight.copy_(merged.view_as(weight))


def make_optimizer(
    network: nn.Module,
    phase: Phase,
    options: TrainingOptions,
    previous: torch.optim.Optimizer | None = None,
    low_rank: LowRankUpdates | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer of exactly the trainable parameters, the head's groups first.

    It has the factors of `low_rank` in the place of the weights that they update.

    A stage has one group with weight decay and one without; both have the stage's name. Moments of
    `previous` are taken over if it is of the same class.
    """
    spared = set() if options.decay_all else find_undecayed(network)
    replace = low_rank.replace if low_rank else list
    groups = [
        {**group, "params": replace(some), "weight_decay": weight_decay}
        for group in parameter_groups(network, phase)
        for is_spared, weight_decay in ((False, options.weight_decay), (True, 0.0))
        if (some := [p for p in group["params"] if (p in spared) == is_spared])
    ]
    # A fused SGD cannot begin with the moments of some parameters only (PyTorch 2.15).
    optimizer = (
        torch.optim.AdamW(groups, fused=True)
        if (phase.optimizer or options.optimizer) == "adamw"
        else torch.optim.SGD(groups, momentum=options.momentum)
    )
    if type(previous) is type(optimizer):
        trained = [p for group in groups for p in group["params"]]
        optimizer.state.update({p: previous.state[p] for p in trained if p in previous.state})
    return optimizer


def find_undecayed(network: nn.Module) -> set[nn.Parameter]:
    """Return the trainable parameters without weight decay.

    They are, by timm's rule, biases, norms and whatever else has one dimension, and what a network
    names in `no_weight_decay()`; and what has another name in torchvision's transformers.
    """
    own: Any = getattr(network, "no_weight_decay", set)
    names = [name for name, _ in network.named_parameters()]
    listed = [n for n in names if any(fnmatchcase(n, p) for p in (*own(), *UNDECAYED))]
    groups = param_groups_weight_decay(network, weight_decay=1.0, no_weight_decay_list=listed)
    return {p for group in groups if not group["weight_decay"] for p in group["params"]}


def lr_factor(step: int, phase: Phase, updates_per_epoch: int, options: TrainingOptions) -> float:
    """Compute the learning-rate multiplier for one update of a phase, counted from 0.

    Linear warm-up, then cosine decay to 0 (Loshchilov and Hutter 2017, arXiv:1608.03983), a drop
    every `step_epochs` or no decay.
    """
    total = phase.epochs * updates_per_epoch
    warmup = int(options.warmup_ratio * total)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    schedule = phase.schedule or options.schedule
    if schedule == "constant":
        return 1.0
    if schedule == "step":
        return options.step_factor ** (step // (options.step_epochs * updates_per_epoch))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def make_ema(above: nn.Module, decay: float) -> ModelEmaV3:
    """Return a moving average of the part above the thaw line, its running statistics included.

    `update_ema` keeps the decay of update t at (1 + t) / (10 + t) or less, so that the average of a
    short training is not mostly its beginning (Polyak and Juditsky 1992).
    """
    return ModelEmaV3(above, decay, use_warmup=True, warmup_gamma=9, warmup_power=1)


def update_ema(ema: ModelEmaV3, above: nn.Module, update: int) -> None:
    """Move the average towards the weights after an update, counted from 1 in a phase."""
    ema.update(above, step=update + 2)  # whose decay is 1 - (1 + (update + 1) / 9) ** -1 at most


def load_ema(network: nn.Module, ema: ModelEmaV3 | None) -> None:
    """Replace the weights of the network by their averages."""
    if ema:
        network.load_state_dict(ema.module.state_dict(), strict=False)


@contextmanager
def ema_weights(network: nn.Module, ema: ModelEmaV3 | None) -> Iterator[None]:
    """Give the network the averaged weights within the context."""
    if not ema:
        yield
        return
    averaged = ema.module.state_dict()
    own = {n: t.clone() for n, t in network.state_dict().items() if n in averaged}
    load_ema(network, ema)
    try:
        yield
    finally:
        network.load_state_dict(own, strict=False)
