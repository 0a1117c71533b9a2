"""Probe the stages of a pretrained network linearly, and choose a strategy by the results."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from thawline.data.loading import ImageView, ViewLoader
from thawline.data.transforms import Transforms
from thawline.errors import DataError
from thawline.networks.stages import find_stages
from thawline.options import AUTO, AutoOptions, LastStages, Parameters, Strategy, TrainingOptions
from thawline.thaw.cache import NO_CACHE, ActivationCache
from thawline.thaw.device import Accelerator, make_accelerator
from thawline.thaw.features import FeatureLoader
from thawline.thaw.image_set import image_set
from thawline.thaw.line import ThawLine
from thawline.thaw.partition import Tensors

MAX_IMAGES = 5000  # that a probe is fitted to; more would not change the choice
NUM_FOLDS = 5
COLUMNS = ["stage", "features", "accuracy", "standard_error"]

# From correct (N,) bool and groups (N,) or None to a number of independent images, see
# `evaluation.significance.effective_images`.
EffectiveImages = Callable[[np.ndarray, np.ndarray | None], float]


class Choice(NamedTuple):
    """A strategy chosen by the data."""

    name: str  # of the strategy that it is made of
    strategy: Strategy
    reason: str  # a sentence with the numbers that led to it


def choose_strategy(
    parameters: Parameters,
    network: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    effective_images: EffectiveImages,
    cache: ActivationCache,
) -> tuple[Choice, pd.DataFrame]:
    """Return the strategy, named or chosen by the data, and the probes it was chosen by.

    `training.epochs` and `training.lr`, if given, hold in every phase.
    """
    probes = pd.DataFrame(columns=COLUMNS)
    name, strategies, auto = parameters.strategy, parameters.strategies, parameters.auto
    training = parameters.training
    if name != AUTO:
        choice = Choice(name, strategies[name], "named by the parameter strategy")
    elif auto.by == "size":
        choice = choose_by_size(int((splits["split"] == "train").sum()), strategies, auto)
    else:
        probes = probe_stages(
            network, splits, transforms, training, parameters.seed, effective_images, cache
        )
        choice = choose_by_probes(probes, strategies, auto)
    update = training.model_dump(include={"epochs", "lr"}, exclude_none=True)
    return choice._replace(strategy=_change_phases(choice.strategy, update)), probes


def choose_by_size(images: int, strategies: Mapping[str, Strategy], options: AutoOptions) -> Choice:
    """Return the strategy for a number of training images: more images train more stages."""
    if images < options.small:
        name, why = "freeze_to_layer3", f"fewer than auto.small = {options.small}"
    elif images <= options.large:
        name, why = "freeze_to_layer1", f"from auto.small = {options.small} to auto.large"
    else:
        name, why = "full", f"more than auto.large = {options.large}"
    return Choice(name, strategies[name], f"{name}: {images} training images are {why}")


def choose_by_probes(
    probes: pd.DataFrame, strategies: Mapping[str, Strategy], options: AutoOptions
) -> Choice:
    """Return the strategy that trains what lies above the last stage with a good probe.

    A probe is good within one standard error of the best. All stages are trained if none reaches
    `auto.probe_accuracy`.
    """
    best = probes.iloc[int(probes["accuracy"].argmax())]
    found = f"the best probe, on {best['stage']}, reaches {best['accuracy']:.3f}"
    if best["accuracy"] < options.probe_accuracy:
        wanted = f"less than auto.probe_accuracy = {options.probe_accuracy:g}"
        return Choice("full", strategies["full"], f"full: {found}, {wanted}")
    is_good = probes["accuracy"] >= best["accuracy"] - best["standard_error"]
    last = int(np.flatnonzero(is_good)[-1])
    frozen = probes["stage"].iloc[last]
    trained = len(probes) - last  # the head is a stage too, and has no row
    found += f", and {frozen} is the last stage within {best['standard_error']:.3f} of it"
    if trained == 1:
        return Choice("head_only", strategies["head_only"], f"head_only: {found}")
    update = {"trainable": LastStages(last=trained)}
    strategy = _change_phases(strategies["freeze_to_layer3"], update)
    return Choice("freeze_to_layer3", strategy, f"what lies above {frozen}: {found}")


def probe_stages(
    network: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    seed: int,
    effective_images: EffectiveImages,
    store: ActivationCache = NO_CACHE,
) -> pd.DataFrame:
    """Return how well a linear probe classifies by the pooled output of each stage but the head.

    Probes are cross-validated logistic regressions on standardized features of unaugmented training
    images (Alain and Bengio 2016, arXiv:1610.01644). Images of a group stay in one fold.

    Returns:
        stage, features (their number), accuracy (0 to 1) and standard_error; one row per stage.

    Raises:
        DataError: when all training images are of one group.
    """
    train_set = image_set(splits, "train", torch.device("cpu"))
    some = np.arange(len(train_set.labels))
    if len(some) > MAX_IMAGES:
        some = np.random.default_rng(seed).permutation(len(some))[:MAX_IMAGES]
    (images,), targets = train_set.take([some]), train_set.labels.numpy()[some]
    groups = None
    if "group" in splits:
        groups = splits.loc[splits["split"] == "train", "group"].to_numpy()[some]
    stages = stage_features(network, images, transforms, options, store)
    rows = []
    for stage, features in track(stages.items(), "Probing stages", len(stages), transient=True):
        scores = cross_validate(features, targets, groups, seed, effective_images)
        rows.append((stage, features.shape[1], *scores))
    return pd.DataFrame(rows, columns=COLUMNS)


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
    `dtype`; None: as in training.

    Returns:
        (N, features) float32 by the stage's name, from the input on.
    """
    stages = StageFeatures(copy.deepcopy(network))
    accelerator = make_accelerator(options)
    loader = FeatureLoader(
        ThawLine(stages, network, network, tuple(stages.outputs)),
        transforms,
        ViewLoader(transforms, options.num_workers, accelerator.device.type == "cuda"),
        store,
        Accelerator(accelerator.device, dtype or accelerator.dtype),
        entries=len(images),
    )
    size = options.batch_size
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    loaded = track(loader.load(batches, keep), "Computing stages", len(batches), transient=True)
    columns = [torch.cat(column).float().cpu().numpy() for column in zip(*loaded, strict=True)]
    return dict(zip(stages.outputs, columns, strict=True))


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


def cross_validate(
    features: np.ndarray,
    targets: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
    effective_images: EffectiveImages,
) -> tuple[float, float]:
    """Return the accuracy of linear probes on images that they were not fitted to.

    Features are (N, features), class indices and groups (N,). Images of a group stay in one fold.

    Returns:
        The accuracy, 0 to 1, and its standard error.

    Raises:
        DataError: when all images are of one group.
    """
    predicted = np.empty_like(targets)
    for rest, fold in _make_folds(targets, groups, seed).split(features, targets, groups):
        if len(np.unique(targets[rest])) > 1:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
            predicted[fold] = probe.fit(features[rest], targets[rest]).predict(features[fold])
        else:  # this fold has the only group of one of two classes
            predicted[fold] = targets[rest[0]]
    correct = predicted == targets
    accuracy = float(correct.mean())
    error = np.sqrt(accuracy * (1 - accuracy) / effective_images(correct, groups))
    return accuracy, float(error)


def _change_phases(strategy: Strategy, update: Mapping[str, Any]) -> Strategy:
    phases = tuple(phase.model_copy(update=update) for phase in strategy.phases)
    return strategy.model_copy(update={"phases": phases})


def _make_folds(
    targets: np.ndarray, groups: np.ndarray | None, seed: int
) -> StratifiedKFold | StratifiedGroupKFold:
    """Return folds that each have several images, or groups, of each class."""
    units = np.arange(len(targets)) if groups is None else groups
    pairs = pd.DataFrame({"class": targets, "unit": units}).drop_duplicates()
    if pairs["unit"].nunique() == 1:
        raise DataError(
            "auto.by: probe needs training images of at least two groups, to fit on one and predict"
            " the other; found one group. Set auto.by=size, or name more groups."
        )
    count = max(2, min(NUM_FOLDS, int(np.bincount(pairs["class"]).min())))
    folds = StratifiedKFold if groups is None else StratifiedGroupKFold
    return folds(count, shuffle=True, random_state=seed)
