"""Measure which stages of a pretrained network already serve, and choose a strategy by that."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rich.progress import track
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from thawline.data.loading import ViewLoader
from thawline.data.transforms import Transforms, evaluation_view
from thawline.errors import DataError
from thawline.options import (
    AUTO,
    AutoOptions,
    LastStages,
    Parameters,
    Strategy,
    TrainingOptions,
)
from thawline.thaw.cache import ActivationCache, Tensors
from thawline.thaw.device import compute_dtype, make_accelerator
from thawline.thaw.features import FeatureLoader
from thawline.thaw.freezing import find_stages
from thawline.thaw.image_set import ImageView, image_set
from thawline.thaw.line import ThawLine

logger = logging.getLogger(__name__)

MOST_IMAGES = 5000  # that a probe is fitted to; more would not change the choice
FOLDS = 5
# From correct (N,) bool and groups (N,) or None to the number of independent images.
EffectiveImages = Callable[[np.ndarray, np.ndarray | None], float]
COLUMNS = ["stage", "features", "accuracy", "standard_error"]


class Choice(NamedTuple):
    """A strategy chosen by the data.

    Attributes:
        name: of the strategy that it is made of.
        strategy: what is trained.
        reason: a sentence with the figures that led to it.
    """

    name: str
    strategy: Strategy
    reason: str


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
    strategies, auto, training = parameters.strategies, parameters.auto, parameters.training
    if parameters.strategy != AUTO:
        strategy = strategies[parameters.strategy]
        choice = Choice(parameters.strategy, strategy, "named by the parameter strategy")
    elif auto.by == "size":
        choice = choose_by_size(int((splits["split"] == "train").sum()), strategies, auto)
    else:
        probes = probe_stages(
            network, splits, transforms, training, parameters.seed, effective_images, cache
        )
        choice = choose_by_probes(probes, strategies, auto)
    overrides = {"epochs": training.epochs, "lr": training.lr}
    update = {name: value for name, value in overrides.items() if value is not None}
    phases = tuple(phase.model_copy(update=update) for phase in choice.strategy.phases)
    strategy = choice.strategy.model_copy(update={"phases": phases})
    return choice._replace(strategy=strategy), probes


def choose_by_size(images: int, strategies: Mapping[str, Strategy], options: AutoOptions) -> Choice:
    """Return the strategy for so many training images: the more there are, the more is trained."""
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
    """Return the strategy that freezes every stage whose features serve.

    These are the stages up to the last one whose probe is within a standard error of the best; what
    lies above it is trained, and all where no probe reaches `auto.probe_accuracy`.

    Args:
        probes: the table of `probe_stages`.
        strategies: those of the parameters.
        options: `probe_accuracy`.
    """
    best = probes.iloc[int(probes["accuracy"].argmax())]
    found = f"the best probe, on {best['stage']}, reaches {best['accuracy']:.3f}"
    if best["accuracy"] < options.probe_accuracy:
        wanted = f"less than auto.probe_accuracy = {options.probe_accuracy:g}"
        return Choice("full", strategies["full"], f"full: {found}, {wanted}")
    serves = probes["accuracy"] >= best["accuracy"] - best["standard_error"]
    last = int(np.flatnonzero(serves)[-1])
    frozen = probes["stage"].iloc[last]
    trained = len(probes) - last  # the head is a stage too, and has no row
    found += f", and {frozen} is the last stage within {best['standard_error']:.3f} of it"
    if trained == 1:
        return Choice("head_only", strategies["head_only"], f"head_only: {found}")
    chosen = strategies["freeze_to_layer3"]
    phases = tuple(
        phase.model_copy(update={"trainable": LastStages(last=trained)}) for phase in chosen.phases
    )
    reason = f"what lies above {frozen}: {found}"
    return Choice("freeze_to_layer3", chosen.model_copy(update={"phases": phases}), reason)


def probe_stages(
    network: nn.Module,
    splits: pd.DataFrame,
    transforms: Transforms,
    options: TrainingOptions,
    seed: int,
    effective_images: EffectiveImages,
    store: ActivationCache | None = None,
) -> pd.DataFrame:
    """Return how well a linear classifier does on the pooled output of each stage but the head.

    Every stage is measured in one pass over the training images, without augmentation; probes are
    logistic regressions on standardized features (Alain and Bengio 2016, arXiv:1610.01644), judged
    by cross-validation, so that no other split is looked at. Images of a group stay in one fold.

    Args:
        network: set to evaluation mode in a copy.
        splits: the table of `split_dataset`.
        transforms: how files become views.
        options: device, batch size, workers.
        seed: of the folds, and of the choice among too many images.
        effective_images: as `evaluation.significance.effective_images`.
        store: where features are cached; None: nowhere.

    Returns:
        stage, features (their number), accuracy (0 to 1), standard_error; a row a stage, from the
        input on.

    Raises:
        DataError: when all training images are of one group.
    """
    train_set = image_set(splits, "train", torch.device("cpu"))
    some = np.arange(len(train_set.labels))
    if len(some) > MOST_IMAGES:
        some = np.random.default_rng(seed).permutation(len(some))[:MOST_IMAGES]
    (images,), labels = train_set.take([some]), train_set.labels[torch.from_numpy(some)]
    line = line_of_stages(network)
    features = compute_features(line, images, transforms, options, store, "Computing every stage")
    truth, groups = labels.numpy(), None
    if "group" in splits:
        groups = splits.loc[splits["split"] == "train", "group"].to_numpy()[some]
    rows = []
    score = partial(cross_validate, seed=seed, effective_images=effective_images)
    for stage, table in track(
        list(zip(line.boundary, features, strict=True)), "Probing every stage", transient=True
    ):
        rows.append((stage, table.shape[1], *score(table, truth, groups)))
    return pd.DataFrame(rows, columns=COLUMNS)


def stage_features(
    network: nn.Module,
    images: Sequence[ImageView],
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache | None = None,
) -> list[np.ndarray]:
    """Return the pooled output of each stage but the head for each image's evaluation view.

    Returns:
        (N, features) float32 for each stage, from the input on; only the mean colors where the
        head is all there is.
    """
    line = line_of_stages(network)
    if not line.boundary:
        views = (evaluation_view(image.path, transforms.preprocessing) for image in images)
        return [np.stack([_pooled(view[None].float())[0].numpy() for view in views])]
    return compute_features(line, images, transforms, options, store, "Computing features")


def line_of_stages(network: nn.Module) -> ThawLine:
    """Return what yields every stage's pooled output in place of a thaw line."""
    stages = StageFeatures(copy.deepcopy(network))
    return ThawLine(stages, network, network, tuple(stages.outputs))  # type: ignore[arg-type]


def compute_features(
    line: ThawLine,
    images: Sequence[ImageView],
    transforms: Transforms,
    options: TrainingOptions,
    store: ActivationCache | None,
    description: str,
    dtype: torch.dtype | None = None,
    keep: bool = True,
) -> list[np.ndarray]:
    """Return each tensor (N, …) float32 that crosses the line, of all evaluation views.

    Args:
        line: a thaw line, or of `line_of_stages`.
        images: files.
        transforms: how they become views.
        options: device, batch size, workers.
        store: where what is computed is kept; None: nowhere.
        description: of the progress bar.
        dtype: that is computed in; None: as training does.
        keep: false where nobody will ask for the same again.
    """
    accelerator = make_accelerator(options)
    loader = FeatureLoader(
        line,
        transforms,
        ViewLoader(transforms, options.num_workers, accelerator.device.type == "cuda"),
        store or ActivationCache(Path(), max_gb=0),
        accelerator.device,
        dtype or compute_dtype(accelerator),
        entries=len(images),
    )
    size = options.batch_size
    batches = [images[start : start + size] for start in range(0, len(images), size)]
    loaded = track(loader.load(batches, keep=keep), description, len(batches), transient=True)
    columns = zip(*loaded, strict=True)
    return [torch.cat(column).float().cpu().numpy() for column in columns]


class StageFeatures(nn.Module):
    """Yields what each stage but the head yields, pooled: a tuple of (N, features).

    Attributes:
        outputs: names of the modules of each of these stages; of a stage without any there is none.
    """

    def __init__(self, network: nn.Module) -> None:
        """Take a network, which is set to evaluation mode."""
        super().__init__()
        self.network = network.eval()
        stages = find_stages(network)
        # A stage's modules run in their order, so what the last of them leaves is its output.
        self.outputs = {
            name: stage.modules for name, stage in list(stages.items())[:-1] if stage.modules
        }
        self.code = str(self.outputs)

    def forward(self, images: Tensor) -> Tensors:
        """Return the features (N, …) of each stage in `outputs` for images (N, 3, size, size)."""
        found: dict[str, Tensor] = {}
        hooks = [
            self.network.get_submodule(module).register_forward_hook(
                lambda _, __, output, stage=stage: found.update({stage: _pooled(output)})
            )
            for stage, modules in self.outputs.items()
            for module in modules
        ]
        try:
            self.network(images)
        finally:
            for hook in hooks:
                hook.remove()
        return tuple(found[stage] for stage in self.outputs)


def _pooled(output: Tensor) -> Tensor:
    """Return the mean over all positions of (N, C, H, W), (N, H, W, C) or tokens (N, L, C)."""
    if output.ndim == 4:  # noqa: PLR2004
        channels_last = output.shape[1] == output.shape[2] != output.shape[3]
        return output.mean(dim=(1, 2) if channels_last else (2, 3))
    return output.mean(dim=1) if output.ndim == 3 else output.flatten(1)  # noqa: PLR2004


def cross_validate(
    features: np.ndarray,
    truth: np.ndarray,
    groups: np.ndarray | None,
    seed: int,
    effective_images: EffectiveImages,
) -> tuple[float, float]:
    """Return the accuracy of linear probes on images that they were not fitted to.

    Args:
        features: (N, features).
        truth: class indices (N,).
        groups: name or number of each image's group, which stays in one fold; None: no groups.
        seed: of the folds.
        effective_images: as `evaluation.significance.effective_images`.

    Returns:
        The accuracy, 0 to 1, and its standard error, which counts images of a group together.

    Raises:
        DataError: when all images are of one group.
    """
    guess = np.empty_like(truth)
    for rest, fold in _make_folds(truth, groups, seed).split(features, truth, groups):
        if len(np.unique(truth[rest])) > 1:
            probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
            guess[fold] = probe.fit(features[rest], truth[rest]).predict(features[fold])
        else:  # the only group of a class of two is in this fold
            guess[fold] = truth[rest[0]]
    right = guess == truth
    accuracy = float(right.mean())
    error = np.sqrt(accuracy * (1 - accuracy) / effective_images(right, groups))
    return accuracy, float(error)


def _make_folds(
    truth: np.ndarray, groups: np.ndarray | None, seed: int
) -> StratifiedKFold | StratifiedGroupKFold:
    """Return folds that each class is in with several of its images, or of its groups."""
    if groups is None:
        count = max(2, min(FOLDS, int(np.bincount(truth).min())))
        return StratifiedKFold(count, shuffle=True, random_state=seed)
    pairs = pd.DataFrame({"class": truth, "group": groups}).drop_duplicates()
    if pairs["group"].nunique() == 1:
        raise DataError(
            "auto.by: probe needs training images of at least two groups, to fit to one and predict"
            " the other; found one group. Set auto.by=size, or name more groups."
        )
    count = max(2, min(FOLDS, int(np.bincount(pairs["class"]).min())))
    return StratifiedGroupKFold(count, shuffle=True, random_state=seed)
