"""Short trainings of a small network."""

from typing import Any

import pandas as pd
import torch
from hypothesis import strategies as st
from torch import nn

from thawline.data.transforms import Transforms, build_transforms
from thawline.networks.building import IMAGENET, build_network
from thawline.options import (
    AugmentationOptions,
    CompareOptions,
    ModelOptions,
    Parameters,
    Phase,
    Strategy,
    TrainingOptions,
    TransformOptions,
)
from thawline.training.loop import train
from thawline.training.progress import TrainingResult
from thawline.training.setup import TrainingContext, prepare

HEAD = Phase(trainable={"last": 1}, epochs=2, lr=0.01)
EVERYTHING = Phase(trainable="all", epochs=2, lr=0.003)
FROZEN_NORM = EVERYTHING.model_copy(update={"batch_norm": "eval"})
STAGES = ["stem", "layer1", "layer2", "head"]

random_phases = st.lists(
    st.builds(
        Phase,
        trainable=st.one_of(
            st.just("all"),
            st.builds(lambda last: {"last": last}, st.integers(1, 6)),
            st.builds(lambda n: {"lora": {"stages": n, "rank": 2}}, st.integers(2, 6)),
            st.lists(
                st.sampled_from([*STAGES, "norms", "*.bias", "layer?.1.*"]), min_size=1, max_size=3
            ),
        ),
        epochs=st.just(1),
        lr=st.floats(1e-3, 1e-2),
        lr_decay=st.floats(0.3, 1),
        batch_norm=st.sampled_from(["train", "eval"]),
        optimizer=st.sampled_from([None, "sgd", "adamw"]),
    ),
    min_size=1,
    max_size=4,
)


def options(**changes: Any) -> TrainingOptions:
    """Return options of a training in fp32 without decoding processes."""
    return TrainingOptions(**{"num_workers": 0, "precision": "fp32", "batch_size": 8, **changes})


def parameters(
    seed: int = 0, views: int | None = None, mixup: float = 0, **training: Any
) -> Parameters:
    """Return the parameters of a training with these options."""
    return Parameters(
        seed=seed,
        strategies={"head_only": Strategy(phases=[HEAD])},
        compare=CompareOptions(strategies=("head_only",)),
        augmentation=AugmentationOptions(views_per_image=views, mixup=mixup),
        training=options(**training),
    )


def transforms(size: int = 32) -> Transforms:
    """Return transforms to small images."""
    return build_transforms(TransformOptions(size=size), IMAGENET)


def network_of(backbone: str = "helpers.networks:SmallNet", **model: Any) -> nn.Module:
    """Return a network of two classes with random weights."""
    return build_network(ModelOptions(backbone=backbone, weights="none", **model), 2, 32, 0)[0]


def without_dropout(network: nn.Module) -> nn.Module:
    """Return the network, whose dropout drops nothing."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def prepared(
    splits: pd.DataFrame, network: nn.Module | None = None, **changes: Any
) -> TrainingContext:
    """Return a training of the small network, or of another one."""
    return prepare(parameters(**changes), network or network_of(), splits, transforms())


def run(splits: pd.DataFrame, *phases: Phase, **changes: Any) -> TrainingResult:
    """Train the small network."""
    return train(prepared(splits, **changes), phases)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Return whether two states are the same to the bit."""
    names = first.keys() | second.keys()
    return all(name in first and torch.equal(first[name], second[name]) for name in names)
