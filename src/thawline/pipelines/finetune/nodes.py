"""Nodes of fine-tuning and evaluation."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from thawline.data.corrections import corrected_paths
from thawline.data.decoding import hash_files
from thawline.data.shards import read_bytes
from thawline.errors import ParameterError
from thawline.options import (
    AUTO,
    FINE_TUNE,
    AugmentationOptions,
    EvaluationOptions,
    Parameters,
    TrainingOptions,
)
from thawline.pipelines.types import (
    Choice,
    Classifier,
    Network,
    OnEpoch,
    ProjectFolders,
    ServedModel,
    TrainingCheckpoints,
    Transforms,
)
from thawline.reports.figures import training as figures

logger = logging.getLogger(__name__)

EXAMPLES = 2  # images in the input example of the served model


def build_transforms(parameters: Parameters) -> Transforms:
    """Return the transforms for training and evaluation, by default those of the weights."""
    from thawline.data import transforms
    from thawline.networks import building as backbones

    preprocessing = backbones.pretrained_preprocessing(parameters.model)
    options, augmentation = parameters.transforms, parameters.augmentation
    return transforms.build_transforms(options, preprocessing, parameters.data_seed, augmentation)


def build_model(
    parameters: Parameters, splits: pd.DataFrame, image_transforms: Transforms
) -> tuple[Network, dict[str, Any]]:
    """Return the network with a head for the classes of the splits, and the load report."""
    from thawline.pipelines.finetune.run_training import build_network

    network, report = build_network(parameters, splits, image_transforms.preprocessing.size)
    logger.info("%s: %s", parameters.model.backbone, report)
    return network, dataclasses.asdict(report)


def choose_strategy(
    parameters: Parameters,
    network: Network,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    activations: Path,
    training_checkpoints: TrainingCheckpoints | None = None,
) -> tuple[Choice, dict[str, str], pd.DataFrame, go.Figure, Network, Transforms]:
    """Return the strategy, why it was chosen, what was tried for it, and the network it trains."""
    from thawline.pipelines.finetune.run_training import training_arguments, try_training
    from thawline.sweep import auto
    from thawline.training import setup

    arguments = partial(training_arguments, splits=splits, activations=activations)
    choice = auto.choose_strategy(
        parameters,
        splits,
        train=lambda own: try_training(arguments(own), training_checkpoints),
        prepare=lambda own: setup.prepare(*arguments(own)),
        checkpoints=training_checkpoints,
    )
    if parameters.strategy == AUTO:
        logger.debug("Strategy auto: %s", choice.reason)
        _, network, _, image_transforms, _ = arguments(choice.parameters)
    table = choice.table()
    figure = figures.candidates_figure(table)
    return choice, choice.describe(), table, figure, network, image_transforms


def freeze_layers(network: Network, chosen_strategy: Choice) -> tuple[Network, pd.DataFrame]:
    """Return the network as the first phase trains it, and the report on all phases."""
    from thawline.thaw import freezing

    report = freezing.freeze_report(network, chosen_strategy.parameters.phases)
    for number, rows in report.groupby("phase"):
        trained = rows[rows["trainable"] > 0]
        some, whole = (f"{n:,}" for n in (trained["trainable"].sum(), rows["parameters"].sum()))
        stages = ", ".join(trained["stage"])
        logger.info("Phase %d trains %s of %s parameters: %s", number, some, whole, stages)
    return network, report


def train_model(
    frozen_network: Network,
    chosen_strategy: Choice,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    activations: Path,
    training_checkpoints: TrainingCheckpoints,
    metric_logger: OnEpoch,
) -> tuple[Classifier, Classifier, pd.DataFrame, list[dict[str, Any]], go.Figure, go.Figure]:
    """Return the best and the last classifier, history, freeze contract and its figures."""
    from thawline.networks.files import read_ancestors
    from thawline.pipelines.finetune.run_training import make_classifier, run_training
    from thawline.thaw.cache import ActivationCache

    parameters = chosen_strategy.parameters
    cache = ActivationCache(activations, parameters.activations.max_gb)
    if result := chosen_strategy.result:
        result.report(metric_logger)
    else:
        arguments = parameters, frozen_network, splits, image_transforms, cache
        result = run_training(arguments, training_checkpoints, metric_logger)
    if result.best_epoch:
        best_val_accuracy = result.history["val_accuracy"].iloc[result.best_epoch - 1]
        reached = {"best_val_accuracy": best_val_accuracy, **result.wise_ft}
        metric_logger(reached, result.best_epoch)
    seen = frozenset(hash_files(splits.loc[splits["split"] != "test", "path"].tolist()))
    strategy = parameters.strategies[parameters.strategy]
    if strategy.weights is None:
        seen |= read_ancestors(parameters.model) or frozenset()
    description = {"seed": parameters.seed, **chosen_strategy.describe()}
    linear_head = {name: rows for name, rows in result.linear_head.items() if name != "losses"}
    description |= strategy.model_dump(mode="json") | linear_head
    common, data = (parameters, frozen_network), (splits, image_transforms)
    of_best = description | {"epoch": result.best_epoch, **result.wise_ft}
    best = make_classifier(*common, result.best, *data, of_best, seen)
    of_last = description | {"epoch": len(result.history)}
    last = make_classifier(*common, result.last, *data, of_last, seen)
    curves = figures.learning_curves(result.history, result.best_epoch)
    path = result.linear_head.get("path")
    if path and len(result.history) == 1:  # a curve of one point
        curves = figures.regularization_path(path)
    lost = figures.stage_contributions(result.linear_head.get("contributions", []))
    return best, last, result.history, result.freeze_contract, curves, lost


def calibrate_classifier(
    parameters: Parameters,
    trained_classifier: Classifier,
    splits: pd.DataFrame,
    activations: Path,
) -> Classifier:
    """Return the classifier with what validation images say about how sure it is."""
    from thawline.pipelines.finetune import run_training

    return run_training.calibrate_classifier(parameters, trained_classifier, splits, activations)


def draw_views(
    splits: pd.DataFrame,
    image_transforms: Transforms,
    augmentation: AugmentationOptions,
    seed: int,
) -> Image.Image:
    """Return training images as the network sees them."""
    from thawline.reports.figures.views import training_views

    return training_views(splits, image_transforms, augmentation, seed)


def describe_stages(
    network: Network,
    chosen_strategy: Choice,
    history: pd.DataFrame,
    image_transforms: Transforms,
) -> tuple[pd.DataFrame, go.Figure]:
    """Return what each phase does with each stage, and the same drawn with its thaw lines."""
    from thawline.evaluation import stage_summary
    from thawline.reports.figures.model import stage_figure

    size = image_transforms.preprocessing.size
    phases = chosen_strategy.parameters.phases
    table = stage_summary.describe_stages(network, phases, history, size)
    return table, stage_figure(table)


def measure_weight_change(
    parameters: Parameters,
    network: Network,
    classifier: Classifier,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    activations: Path,
) -> tuple[pd.DataFrame, go.Figure]:
    """Return how far training moved each stage from its initial weights, and the same drawn."""
    from thawline.evaluation import stage_summary
    from thawline.reports.figures.model import weight_change_figure
    from thawline.thaw.cache import ActivationCache

    cache = ActivationCache(activations, parameters.activations.max_gb)
    change = stage_summary.measure_weight_change(
        network, classifier.network, splits, image_transforms, parameters.training, cache
    )
    return change, weight_change_figure(change)


def find_lr(
    parameters: Parameters,
    network: Network,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    activations: Path,
) -> tuple[pd.DataFrame, dict[str, float], go.Figure]:
    """Return the loss at rising rates, the rate that it suggests, and the curve.

    It is of the first phase that has a rate; a head in closed form is fitted before. For auto, the
    strategy is the one that auto fine-tunes by.

    Raises:
        ParameterError: if no phase of the strategy has a rate.
    """
    from thawline.thaw.cache import ActivationCache
    from thawline.training import loop, lr_find, setup

    name = FINE_TUNE if parameters.strategy == AUTO else parameters.strategy
    own = parameters.with_strategy(name)
    place = next((i for i, p in enumerate(own.phases) if p.optimizer != "lbfgs"), None)
    if place is None:
        raise ParameterError(
            f"strategy: {name} is fitted in closed form and has no learning rate. Give another one,"
            f" such as {FINE_TUNE}."
        )
    unmixed = own.augmentation.model_copy(update={"mixup": 0, "cutmix": 0})
    own = own.model_copy(update={"augmentation": unmixed})
    cache = ActivationCache(activations, own.activations.max_gb)
    arguments = own, network, splits, image_transforms, cache
    if place:
        loop.train(setup.prepare(*arguments), own.phases[:place])
    phase = own.phases[place]
    curve = lr_find.find_lr(setup.prepare(*arguments), phase, own.lr_find)
    suggested = lr_find.suggest_lr(curve)
    logger.info("Suggested: training.lr=%.2g (phase %d has %g)", suggested, place + 1, phase.lr)
    return curve, {"suggested_lr": suggested}, figures.lr_curve(curve, suggested, phase.lr)


def evaluate_model(
    classifier: Classifier,
    splits: pd.DataFrame,
    options: EvaluationOptions,
    training: TrainingOptions,
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame, go.Figure]:
    """Return metrics, metrics by class, predictions and confusion matrix of the test split."""
    from thawline.evaluation.metrics import compute_metrics
    from thawline.evaluation.predictions import predict_split
    from thawline.reports.figures.evaluation import confusion_matrix

    how = options.batch_size, training, options.tta
    predictions = predict_split(classifier, splits, "test", *how)
    predictions.attrs = splits.attrs
    metrics, per_class, confusion = compute_metrics(predictions, options)
    logger.debug(
        "Test accuracy %(test_accuracy).4f, 95 %% interval %(test_accuracy_low).4f to"
        " %(test_accuracy_high).4f, macro F1 %(test_macro_f1).4f, on %(test_images)d images",
        metrics,
    )
    return metrics, per_class, predictions, confusion_matrix(confusion)


def package_model(classifier: Classifier, splits: pd.DataFrame) -> ServedModel:
    """Return the classifier with two files that show how it is asked."""
    paths = splits.loc[splits["split"] == "test", "path"].head(EXAMPLES)
    return classifier, [read_bytes(path) for path in paths]


def register_model(
    parameters: Parameters,
    uri: str | None,
    predictions: pd.DataFrame,
    classifier: Classifier,
    registry: ProjectFolders,
    applied_corrections: pd.DataFrame,
) -> dict[str, Any]:
    """Return the version that a model was registered as, whether it is champion, and why."""
    from thawline.serving import champion

    corrected = corrected_paths(applied_corrections)
    return champion.register_model(parameters, uri, predictions, classifier, registry, corrected)
