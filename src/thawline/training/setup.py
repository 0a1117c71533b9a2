"""Prepare a training and each of its phases: device, images, loss, thaw line, optimizer."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, fx, nn
from torch.optim.lr_scheduler import LambdaLR

from thawline.data.loading import ViewLoader
from thawline.data.splitting import find_groups
from thawline.data.transforms import BatchMixer, Transforms, make_mix
from thawline.options import Parameters, Phase, TrainingOptions
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.thaw.cutting import fold_kept_batch_norm
from thawline.thaw.device import DTYPES, Accelerator, make_accelerator
from thawline.thaw.features import FeatureLoader
from thawline.thaw.freezing import freeze_layers
from thawline.thaw.image_set import ImageSet, image_set
from thawline.thaw.line import ThawLine, split_at_thaw_line
from thawline.thaw.partition import Tensors
from thawline.training.data_parallel import local_slice, world_size, wrap_for_workers
from thawline.training.fastest import computed, find_fastest, possible_precisions
from thawline.training.optimizer import LowRankUpdates, lr_factor, make_ema, make_optimizer

logger = logging.getLogger(__name__)

Loss = nn.CrossEntropyLoss | nn.NLLLoss

# PyTorch's own 65,536 overflows at first, and so skips steps of which a short training has few.
INITIAL_LOSS_SCALE = 1024.0
MIN_IMAGES = 2  # of a worker in a step: batch norm cannot train on a single image


@dataclass(frozen=True)
class Step:
    """One forward and backward pass."""

    positions: np.ndarray  # of this worker's images in the training split, (B,) int64
    weight: float  # of its mean loss in that of the epoch
    update_share: float  # of its loss in that of an update, times the workers, who average
    ends_update: bool  # whether the weights are updated after it


@dataclass(frozen=True, kw_only=True)
class TrainingContext:
    """What all phases have in common; it serves for one training. See also `prepare`."""

    parameters: Parameters
    network: nn.Module
    accelerator: Accelerator  # device and precision
    train_set: ImageSet
    train_groups: np.ndarray | None  # of the training images, (N,); None if the table has no groups
    val_set: ImageSet  # chooses the best epoch
    loss_function: Loss  # a mean over images
    image_weights: np.ndarray  # of each training image in the loss, (N,) float64
    loader: ViewLoader
    cache: ActivationCache
    speeds: Path | None  # a folder for what is found out about the machine
    transforms: Transforms
    mix: BatchMixer | None
    scaler: torch.amp.GradScaler  # of the loss in fp16
    shuffle_rng: torch.Generator

    @property
    def options(self) -> TrainingOptions:
        """The group `training` of the parameters."""
        return self.parameters.training

    def shuffled_batches(self, rng: torch.Generator) -> list[np.ndarray]:
        """Return positions of training images in batches."""
        balanced, smallest = self.options.sampling == "balanced", MIN_IMAGES * world_size()
        return self.train_set.shuffle(rng, self.options.batch_size, balanced, smallest)

    def plan_epoch(self, micro_batch: int) -> list[Step]:
        """Shuffle the training images, and divide them into steps of about `micro_batch` images."""
        batches = self.shuffled_batches(self.shuffle_rng)
        accumulated = self.options.gradient_accumulation_steps
        steps = []
        for start in range(0, len(batches), accumulated):
            update = batches[start : start + accumulated]
            update_weight = sum(self.image_weights[batch].sum() for batch in update)
            parts = [part for batch in update for part in _split_batch(batch, micro_batch)]
            for part in parts:
                own = local_slice(part)
                weight = float(self.image_weights[own].sum())
                share = weight * world_size() / update_weight
                steps.append(Step(own, weight, share, ends_update=part is parts[-1]))
        return steps

    def load_steps(
        self, features: FeatureLoader, steps: Sequence[Step], epoch: int
    ) -> Iterator[Tensors]:
        """Yield what crosses the thaw line in an epoch, counted from 0, from its random views."""
        count = self.parameters.augmentation.views_per_image
        batches = [step.positions for step in steps]
        views = self.train_set.take(batches, epoch % count if count else epoch)
        return features.load(views, keep=count is not None)


def _split_batch(batch: np.ndarray, size: int) -> list[np.ndarray]:
    """Return a batch in parts of about `size` images, as even as possible."""
    parts = min(math.ceil(len(batch) / size), len(batch) // (MIN_IMAGES * world_size()))
    return np.array_split(batch, max(1, parts))


@dataclass(frozen=True)
class PhaseContext:
    """What one phase is trained with."""

    line: ThawLine
    features: FeatureLoader  # loads what crosses the line
    accelerator: Accelerator  # that trains what is above it
    above: nn.Module  # the line's part in training, whose gradients workers average
    low_rank: LowRankUpdates  # of some of the trainable parameters
    optimizer: torch.optim.Optimizer  # of the trainable parameters, or of their updates' factors
    schedule: LambdaLR
    ema: ModelEmaV3 | None  # of the part above the line
    phase: Phase

    @property
    def trained(self) -> list[nn.Parameter]:
        """What the optimizer moves."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def describe(self) -> dict[str, Any]:
        """Return what the history says of the phase, with the learning rates of now."""
        groups = self.optimizer.param_groups
        return {
            "thaw_line": ", ".join(self.line.boundary),
            "trainable_parameters": sum(p.numel() for p in self.trained),
            "lr": groups[0]["lr"],
            **{f"lr/{group['name']}": group["lr"] for group in groups},
        }


def prepare(
    parameters: Parameters,
    network: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    cache: ActivationCache = NO_CACHE,
) -> TrainingContext:
    """Seed all generators, move the network to its device and return what will train it there.

    On one CPU, the same seed gives the same bits. The network returns logits, or with
    `model.log_probabilities` log-probabilities, (N, C). `cache` holds what the frozen layers
    return; without it, or with mixup or CutMix, they run in every epoch.

    Raises:
        ParameterError: if the device is not available.
        DataError: if an image file cannot be read.
    """
    options = parameters.training
    set_seed(parameters.seed)
    accelerator = make_accelerator(options)
    device, dtype = accelerator.device, accelerator.dtype
    network.to(device).to(memory_format=torch.channels_last)
    logger.debug("Training on %s in %s", device, dtype)
    mix = make_mix(parameters.augmentation, splits["class_index"].nunique())
    if mix:
        logger.info("%s is on: the whole network runs in every step and nothing is cached", mix)
    loss_function = make_loss(splits, options, parameters.model.log_probabilities)
    train_set = image_set(splits, "train", device)
    may_be_fp16 = "fp16" in possible_precisions(options, accelerator)
    return TrainingContext(
        parameters=parameters,
        network=network,
        accelerator=accelerator,
        train_set=train_set,
        train_groups=find_groups(splits, "train"),
        val_set=image_set(splits, "val", device),
        loss_function=loss_function.to(device),
        image_weights=_image_weights(train_set, None if mix else loss_function.weight),
        loader=ViewLoader(transforms, options.num_workers, device.type == "cuda"),
        cache=NO_CACHE if mix else cache,
        speeds=cache.folder if cache.max_bytes else None,
        transforms=transforms,
        mix=mix,
        scaler=torch.amp.GradScaler(device.type, INITIAL_LOSS_SCALE, enabled=may_be_fp16),
        shuffle_rng=torch.Generator().manual_seed(parameters.seed),
    )


def prepare_phase(
    run: TrainingContext, phase: Phase, previous: torch.optim.Optimizer | None = None
) -> PhaseContext:
    """Freeze the network as a phase needs it, and return what trains the rest.

    Moments of the `previous` optimizer are taken over.

    Raises:
        ParameterError: if the phase names no stage of the network.
    """
    network, options, fits = run.network, run.options, phase.optimizer == "lbfgs"
    views = 1 if fits else run.parameters.augmentation.views_per_image or 0
    freeze_layers(network, phase)
    transforms, loader = run.transforms, run.loader
    if phase.size:
        transforms = transforms.resized(phase.size)
        loader = ViewLoader(transforms, options.num_workers, run.accelerator.device.type == "cuda")
    line = ThawLine(None, network, network)  # mixed images cross it: none is ever seen again
    if not run.mix:
        line = split_at_thaw_line(network, transforms.preprocessing.size)
    features = FeatureLoader(
        line, transforms, loader, run.cache, run.accelerator,
        entries=views * len(run.train_set.labels) + len(run.val_set.labels),
    )  # fmt: skip
    low_rank = LowRankUpdates(network, phase, run.parameters.seed)
    optimizer = make_optimizer(network, phase, options, previous, low_rank)
    batches = run.shuffled_batches(torch.Generator())
    updates = math.ceil(len(batches) / options.gradient_accumulation_steps)  # per epoch
    above, accelerator = line.above_train, run.accelerator
    if isinstance(above, fx.GraphModule):
        above = fold_kept_batch_norm(above)
    steps = 0 if fits else len(batches) * phase.epochs
    if world_size() == 1 and steps:  # workers would not all find the same
        (boundary,) = features.load(run.train_set.take(batches[:1], view=0), keep=views > 0)
        way = find_fastest(above, boundary, accelerator, options, steps, run.speeds)
        above, accelerator = computed(above, way), accelerator._replace(dtype=DTYPES[way.precision])
    return PhaseContext(
        line,
        features,
        accelerator,
        wrap_for_workers(above, run.parameters.engine.sync_batch_norm),
        low_rank,
        optimizer,
        LambdaLR(optimizer, lambda update: lr_factor(update, phase, updates, options)),
        make_ema(line.above_train, options.ema_decay) if options.ema_decay and not fits else None,
        phase,
    )


def make_loss(splits: pd.DataFrame, options: TrainingOptions, log_probabilities: bool) -> Loss:
    """Return the loss for what the network returns: logits or log-probabilities."""
    weights = None
    if options.class_weights == "balanced":
        counts = splits.loc[splits["split"] == "train", "class_index"].value_counts().sort_index()
        balanced = (counts.sum() / (len(counts) * counts)).to_numpy()
        weights = torch.tensor(balanced, dtype=torch.float32)
    if log_probabilities:
        return nn.NLLLoss(weights)
    return nn.CrossEntropyLoss(weights, label_smoothing=options.label_smoothing)


def _image_weights(images: ImageSet, class_weights: Tensor | None) -> np.ndarray:
    """Return the weight of each image in the loss, (N,) float64."""
    if class_weights is None:
        return np.broadcast_to(1.0, len(images.labels))  # which takes no memory
    return class_weights.cpu().double()[images.labels.cpu()].numpy()
