"""Compute the pooled outputs of a network's stages, in one pass over the images."""

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor, nn

from thawline.data.loading import ImageView, ViewLoader
from thawline.data.transforms import Transforms
from thawline.networks.all_stages import find_all_stages
from thawline.networks.heads import find_linear
from thawline.networks.stages import find_stages
from thawline.options import LastStages, Phase, TrainingOptions
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.thaw.device import Accelerator, make_accelerator
from thawline.thaw.features import FeatureLoader
from thawline.thaw.freezing import evaluation_mode, freeze_layers
from thawline.thaw.line import ThawLine, split_at_thaw_line
from thawline.thaw.partition import Tensors


def stage_features(
    network: nn.Module,
    images: Sequence[ImageView],
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache = NO_CACHE,
    dtype: torch.dtype | None = None,
    keep: bool = True,
) -> dict[str, np.ndarray]:
    """Return the pooled output of each stage of a copy of the network but the head, for `images`.

    They are evaluation views. New outputs are cached in `store` if `keep`. The network computes in
    `dtype`; None: as in training. A network whose head reads all stages has its features in the
    store since its head was fitted.

    Returns:
        (N, features) float32 by the stage's name, from the input on.
    """
    if reader := find_all_stages(network):
        features, _ = head_features(network, images, transforms, options, store, dtype, keep)
        return {stage: means.numpy() for stage, means in reader.means(features).items()}
    stages = StageFeatures(copy.deepcopy(network))
    line = ThawLine(stages, stages.network, stages.network, tuple(stages.outputs))
    loaded = _load(line, images, transforms, options, store, dtype, keep)
    columns = [torch.cat(column).float().cpu().numpy() for column in zip(*loaded, strict=True)]
    return dict(zip(stages.outputs, columns, strict=True))


@torch.no_grad()
def head_features(
    network: nn.Module,
    images: Sequence[ImageView],
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache = NO_CACHE,
    dtype: torch.dtype | None = None,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    """Return what the last linear layer of a copy of the network receives, and what it returns.

    The arguments are those of `stage_features`.

    Returns:
        features (N, F) and logits (N, C), float32 on the CPU.
    """
    network = copy.deepcopy(network)
    freeze_layers(network, Phase(trainable=LastStages(last=1), optimizer="lbfgs"))
    line = split_at_thaw_line(network, transforms.preprocessing.size)
    received: list[Tensor] = []
    returned: list[Tensor] = []
    linear = find_linear(network)
    linear.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0].float().cpu()))
    for boundary in _load(line, images, transforms, options, store, dtype, keep):
        with evaluation_mode(network):
            returned.append(line.above_eval(*(tensor.float() for tensor in boundary)).cpu())
    return torch.cat(received), torch.cat(returned)


def _load(
    line: ThawLine,
    images: Sequence[ImageView],
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache,
    dtype: torch.dtype | None,
    keep: bool,
) -> Iterable[Tensors]:
    """Return batches of what crosses a line, with a progress bar."""
    accelerator = make_accelerator(options)
    loader = FeatureLoader(
        line,
        transforms,
        ViewLoader(transforms, options.num_workers, accelerator.device.type == "cuda"),
        store,
        Accelerator(accelerator.device, dtype or accelerator.dtype),
        entries=len(images),
    )
    size = options.batch_size
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    loaded = loader.load(batches, keep)
    return track(loaded, "Computing features", len(batches), transient=True)


class StageFeatures(nn.Module):
    """The pooled output of each stage but the head; that of the input if there is no other stage.

    Attributes:
        outputs: names of the modules of each stage that has any.
        code: identifies the outputs in the cache, as `torch.fx.GraphModule.code`.
    """

    def __init__(self, network: nn.Module) -> None:
        """Take over a network, and set it to eval mode."""
        super().__init__()
        self.network = network.eval()
        *stages, _ = find_stages(network).items()
        self.outputs = {name: stage.modules for name, stage in stages if stage.modules}
        self.outputs = self.outputs or {"images": []}
        self.code = str(self.outputs)
        self._found: dict[str, Tensor] = {}
        for stage, modules in self.outputs.items():
            for module in modules:  # in their order, so the last one's output remains
                self.network.get_submodule(module).register_forward_hook(partial(self._note, stage))

    def forward(self, images: Tensor) -> Tensors:
        """Return (N, features) of each stage in `outputs` for images (N, 3, size, size)."""
        self._found = {"images": pool(images)}
        self.network(images)
        return tuple(self._found[stage] for stage in self.outputs)

    def _note(self, stage: str, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._found[stage] = pool(output)


def pool(output: Tensor) -> Tensor:
    """Return the mean over all positions of (N, C, H, W), (N, H, W, C) or tokens (N, L, C)."""
    if output.ndim == 4:  # noqa: PLR2004
        is_channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.mean(dim=(1, 2) if is_channels_last else (2, 3))
    return output.mean(dim=1) if output.ndim == 3 else output.flatten(1)  # noqa: PLR2004
