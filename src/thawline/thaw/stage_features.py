"""Compute the pooled outputs of a network's stages, in one pass over the images."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from thawline.data.decoding import show_progress
from thawline.data.loading import ImageView, ViewLoader, evaluation_images
from thawline.data.transforms import Transforms
from thawline.networks.all_stages import find_all_stages, first_tensor
from thawline.networks.classifier import Classifier
from thawline.networks.heads import find_linear
from thawline.networks.stages import HEAD, find_stages
from thawline.options import LastStages, Parameters, Phase, TrainingOptions
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
    how = images, transforms, options, store, dtype, keep
    batches = [means for _, means in _by_stage(network, *how)]
    return {name: torch.cat([means[name] for means in batches]).numpy() for name in batches[0]}


def all_features(network: nn.Module, *how: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the features of all stages, (B, F) float32, and of them those of the last layer.

    They are what a head on all stages receives, or else the pooled output of each stage. The
    arguments are those of `stage_features`.
    """
    for features, means in _by_stage(network, *how):
        yield features, [*means.values()][-1]


class HeadBatch(NamedTuple):
    """What the last linear layer of a network receives and returns for some images."""

    features: Tensor  # (B, F) float32
    means: dict[str, Tensor]  # of them by stage, (B, D), those of the last layer at the end
    logits: Tensor  # (B, C) float32

    @property
    def last(self) -> Tensor:
        """Features of the last layer, (B, D)."""
        return [*self.means.values()][-1]


@torch.no_grad()
def head_batches(network: nn.Module, *how: Any) -> Iterator[HeadBatch]:
    """Yield what the head of a copy of the network receives and returns, batch by batch.

    The arguments are those of `stage_features`.
    """
    network = copy.deepcopy(network).to(make_accelerator(how[2]).device)
    reader, received = find_all_stages(network), list[Tensor]()
    freeze_layers(network, Phase(trainable=LastStages(last=1), optimizer="lbfgs"))
    line = split_at_thaw_line(network, how[1].preprocessing.size)
    linear = find_linear(network)
    linear.register_forward_pre_hook(lambda _, inputs: received.append(inputs[0].float().cpu()))
    for boundary in _load(line, *how):
        with evaluation_mode(network):
            logits = line.above_eval(*(tensor.float() for tensor in boundary)).cpu()
        features = received.pop()
        yield HeadBatch(features, reader.means(features) if reader else {HEAD: features}, logits)


def read_head(
    classifier: Classifier, paths: Sequence[str], parameters: Parameters, store: ActivationCache
) -> tuple[Tensor, Tensor]:
    """Return features of the last layer, (N, D), and logits (N, C) of image files, float32.

    Raises:
        DataError: if an image file cannot be read.
        ParameterError: if the head has no linear layer.
    """
    transforms = Transforms(classifier.preprocessing, parameters.transforms)
    how = evaluation_images(paths), transforms, parameters.training, store
    batches = [(batch.last, batch.logits) for batch in head_batches(classifier.network, *how)]
    features, logits = map(torch.cat, zip(*batches, strict=True))
    return features, logits


def _by_stage(network: nn.Module, *how: Any) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the features of all stages, (B, F) float32 on the CPU, and by stage means (B, D)."""
    if find_all_stages(network):
        for batch in head_batches(network, *how):
            yield batch.features, batch.means
        return
    stages = StageFeatures(copy.deepcopy(network))
    line = ThawLine(stages, stages.network, stages.network, tuple(stages.outputs))
    for boundary in _load(line, *how):
        columns = [column.float().cpu() for column in boundary]
        yield torch.cat(columns, dim=1), dict(zip(stages.outputs, columns, strict=True))


def _load(
    line: ThawLine,
    images: Sequence[ImageView],
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache = NO_CACHE,
    dtype: torch.dtype | None = None,
    keep: bool = True,
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
    return show_progress(loader.load(batches, keep), "Computing features", len(batches))


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
        self.outputs = {name: s.modules for name, s in stages if s.modules} or {"images": []}
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

    def _note(self, stage: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
        self._found[stage] = pool(output)


def pool(output: Any) -> Tensor:
    """Return the mean over all positions of (N, C, H, W), (N, H, W, C) or tokens (N, L, C)."""
    output = first_tensor(output)
    if output.ndim == 4:  # noqa: PLR2004
        is_channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.mean(dim=(1, 2) if is_channels_last else (2, 3))
    return output.mean(dim=1) if output.ndim == 3 else output.flatten(1)  # noqa: PLR2004
