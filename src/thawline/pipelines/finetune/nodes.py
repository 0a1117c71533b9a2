"""Nodes of fine-tuning and evaluation."""

import copy
import dataclasses
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich import print as rich_print
from rich.table import Table
from torch import nn

from thawline.data import transforms
from thawline.data.decoding import hash_files
from thawline.data.shards import read_bytes
from thawline.data.splitting import class_names
from thawline.datasets.served_model_dataset import ServedModel
from thawline.evaluation import stage_summary
from thawline.evaluation.metrics import compute_metrics
from thawline.evaluation.predictions import predict_split
from thawline.evaluation.significance import effective_images
from thawline.networks import building as backbones
from thawline.networks.classifier import Classifier, read_ancestors
from thawline.options import AUTO, EvaluationOptions, Parameters, TrainingOptions
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.figures.model import stage_figure, weight_change_figure
from thawline.reports.figures.training import learning_curves, lr_curve, stage_probes
from thawline.thaw import freezing, probing
from thawline.thaw.cache import ActivationCache
from thawline.training import loop, lr_find, ray_engine, setup
from thawline.training.progress import OnEpoch, State
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

EXAMPLES = 2  # images in the input example of the served model


def build_transforms(parameters: Parameters) -> transforms.Transforms:
    """Return the transforms for training and evaluation, by default those of the weights."""
    preprocessing = backbones.pretrained_preprocessing(parameters.model)
    options, augmentation = parameters.transforms, parameters.augmentation
    return transforms.build_transforms(options, preprocessing, parameters.data_seed, augmentation)


def build_model(
    parameters: Parameters, splits: pd.DataFrame, image_transforms: transforms.Transforms
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with a head for the classes of the splits, and the load report."""
    model, strategy = parameters.model, parameters.strategies.get(parameters.strategy)
    if strategy and strategy.weights not in (None, model.weights):
        logger.info("The strategy starts from random weights instead of %s", model.weights)
        model = model.model_copy(update={"weights": strategy.weights})
    size, names = image_transforms.preprocessing.size, class_names(splits)
    network, report = backbones.build_network(model, len(names), size, parameters.seed, names)
    logger.info("%s, %s", model.backbone, report)
    return network, dataclasses.asdict(report)


def choose_strategy(
    parameters: Parameters,
    network: nn.Module,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    activations: Path,
) -> tuple[probing.Choice, dict[str, str], pd.DataFrame, go.Figure]:
    """Return the strategy, why it was chosen, and the probes of stages with their figure."""
    cache = ActivationCache(activations, parameters.activations.max_gb)
    choice, probes = probing.choose_strategy(
        parameters, network, splits, image_transforms, effective_images, cache
    )
    if parameters.strategy == AUTO:
        logger.info("Strategy auto: %s", choice.reason)
    return choice, describe_choice(parameters, choice), probes, stage_probes(probes)


def freeze_layers(
    network: nn.Module, chosen_strategy: probing.Choice
) -> tuple[nn.Module, pd.DataFrame]:
    """Return the network as the first phase trains it, and the report on all phases."""
    report = freezing.freeze_report(network, chosen_strategy.strategy.phases)
    table = Table(*report.columns, title="Trainable parameters")
    formats = {int: ",", float: ".3g"}
    for row in report.itertuples(index=False):
        table.add_row(*(format(value, formats.get(type(value), "")) for value in row))
    rich_print(table)
    return network, report


def train_model(
    parameters: Parameters,
    frozen_network: nn.Module,
    chosen_strategy: probing.Choice,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    activations: Path,
    training_checkpoints: TrainingCheckpoints,
    metric_logger: OnEpoch,
) -> tuple[Classifier, Classifier, pd.DataFrame, list[dict[str, Any]], go.Figure]:
    """Return the best and the last classifier, history, freeze contract and learning curves."""
    cache = ActivationCache(activations, parameters.activations.max_gb)
    arguments = parameters, frozen_network, splits, image_transforms, cache
    phases = chosen_strategy.strategy.phases
    if parameters.engine.name == "ray":
        result = ray_engine.train(arguments, phases, training_checkpoints, metric_logger)
    else:
        context = setup.prepare(*arguments)
        result = loop.train(context, phases, training_checkpoints, metric_logger)
    if result.best_epoch:
        best_val_accuracy = result.history["val_accuracy"].iloc[result.best_epoch - 1]
        metric_logger({"best_val_accuracy": best_val_accuracy}, result.best_epoch)
    seen = frozenset(hash_files(splits.loc[splits["split"] != "test", "path"].tolist()))
    if chosen_strategy.strategy.weights is None:
        seen |= read_ancestors(parameters.model) or frozenset()

    def make_classifier(state: State, epoch: int) -> Classifier:
        network = copy.deepcopy(frozen_network).cpu().eval()
        network.load_state_dict(state)
        choice = describe_choice(parameters, chosen_strategy)
        training = {"epoch": epoch, "seed": parameters.seed, **choice}
        training |= chosen_strategy.strategy.model_dump(mode="json")
        names, preprocessing = class_names(splits), image_transforms.preprocessing
        return Classifier(network, names, preprocessing, parameters.model, training, seen)

    return (
        make_classifier(result.best, result.best_epoch),
        make_classifier(result.last, len(result.history)),
        result.history,
        result.freeze_contract,
        learning_curves(result.history, result.best_epoch),
    )


def describe_stages(
    network: nn.Module,
    chosen_strategy: probing.Choice,
    history: pd.DataFrame,
    image_transforms: transforms.Transforms,
) -> tuple[pd.DataFrame, go.Figure]:
    """Return what each phase does with each stage, and the same drawn with its thaw lines."""
    size = image_transforms.preprocessing.size
    phases = chosen_strategy.strategy.phases
    table = stage_summary.describe_stages(network, phases, history, size)
    return table, stage_figure(table)


def measure_weight_change(
    parameters: Parameters,
    network: nn.Module,
    classifier: Classifier,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    activations: Path,
) -> tuple[pd.DataFrame, go.Figure]:
    """Return how far training moved each stage from its initial weights, and the same drawn."""
    cache = ActivationCache(activations, parameters.activations.max_gb)
    change = stage_summary.measure_weight_change(
        network, classifier.network, splits, image_transforms, parameters.training, cache
    )
    return change, weight_change_figure(change)


def find_lr(
    parameters: Parameters,
    network: nn.Module,
    chosen_strategy: probing.Choice,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    activations: Path,
) -> tuple[pd.DataFrame, dict[str, float], go.Figure]:
    """Return the loss at rising rates in the first phase, the rate it suggests, and the curve."""
    phase = chosen_strategy.strategy.phases[0]
    unmixed = parameters.augmentation.model_copy(update={"mixup": 0, "cutmix": 0})
    own = parameters.model_copy(update={"augmentation": unmixed})
    cache = ActivationCache(activations, parameters.activations.max_gb)
    context = setup.prepare(own, network, splits, image_transforms, cache)
    curve = lr_find.find_lr(context, phase, parameters.lr_find)
    suggested = lr_find.suggest_lr(curve)
    logger.info("Suggested: training.lr=%.2g (the first phase has %g)", suggested, phase.lr)
    return curve, {"suggested_lr": suggested}, lr_curve(curve, suggested, phase.lr)


def evaluate_model(
    classifier: Classifier,
    splits: pd.DataFrame,
    options: EvaluationOptions,
    training: TrainingOptions,
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame, go.Figure]:
    """Return metrics, metrics by class, predictions and confusion matrix of the test split."""
    how = options.batch_size, training, options.tta
    predictions = predict_split(classifier, splits, "test", *how)
    predictions.attrs = splits.attrs
    metrics, per_class, confusion = compute_metrics(predictions, options)
    logger.info(
        "Test accuracy %(test_accuracy).4f, 95 %% interval %(test_accuracy_low).4f to"
        " %(test_accuracy_high).4f, macro F1 %(test_macro_f1).4f, on %(test_images)d images",
        metrics,
    )
    return metrics, per_class, predictions, confusion_matrix(confusion)


def package_model(classifier: Classifier, splits: pd.DataFrame) -> ServedModel:
    """Return the classifier with two files that show how it is asked."""
    paths = splits.loc[splits["split"] == "test", "path"].head(EXAMPLES)
    return classifier, [read_bytes(path) for path in paths]


def describe_choice(parameters: Parameters, choice: probing.Choice) -> dict[str, str]:
    """Return the strategy that was asked for, the one that was chosen, and why, as texts."""
    return {
        "strategy": parameters.strategy,
        "chosen_strategy": choice.name,
        "strategy_reason": choice.reason,
    }
