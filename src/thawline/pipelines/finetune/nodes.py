"""Nodes of fine-tuning and evaluation."""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from rich import print as rich_print
from rich.table import Table
from torch import nn

from thawline.data import transforms
from thawline.data.decoding import read_bytes
from thawline.data.hashing import hash_files
from thawline.data.splitting import class_names
from thawline.datasets.registry_dataset import OpenRegistry
from thawline.datasets.served_model_dataset import ServedModel
from thawline.evaluation import model_summary
from thawline.evaluation.metrics import compute_metrics
from thawline.evaluation.predictions import predict_split
from thawline.evaluation.significance import effective_images
from thawline.networks import building as backbones
from thawline.networks.classifier import Classifier, read_ancestors
from thawline.options import (
    AUTO,
    ActivationOptions,
    AugmentationOptions,
    AutoOptions,
    DatasetOptions,
    EngineOptions,
    EvaluationOptions,
    LrFindOptions,
    ModelOptions,
    RegistryOptions,
    Strategies,
    Strategy,
    TrainingOptions,
    TransformOptions,
)
from thawline.reports.figures.evaluation import confusion_matrix
from thawline.reports.figures.model import stage_figure, weight_change_figure
from thawline.reports.figures.training import learning_curves, lr_curve, stage_probes
from thawline.serving import champion as registration
from thawline.thaw import freezing, probing
from thawline.thaw.cache import ActivationCache
from thawline.training import loop as training
from thawline.training import lr_find, ray_engine
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

EXAMPLES = 2  # images that show how the served model is asked


def build_transforms(
    transform_options: TransformOptions, model: ModelOptions, dataset: DatasetOptions, seed: int
) -> transforms.Transforms:
    """Return the transforms for training and evaluation, by default those of the weights."""
    pretrained = backbones.pretrained_preprocessing(model)
    seed = seed if dataset.seed is None else dataset.seed
    return transforms.build_transforms(transform_options, pretrained, seed)


def build_model(
    model: ModelOptions,
    strategy: str,
    strategies: Strategies,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    seed: int,
) -> tuple[nn.Module, dict[str, Any]]:
    """Return the network with a head for the classes of the splits, and what was loaded."""
    weights = None if strategy == AUTO else strategies.root[strategy].weights
    if weights is not None and model.weights != weights:
        logger.info("The strategy starts from random weights instead of %s", model.weights)
        model = model.model_copy(update={"weights": weights})
    size, names = image_transforms.preprocessing.size, class_names(splits)
    network, report = backbones.build_network(model, len(names), size, seed, names)
    logger.info("%s, %s", model.backbone, report)
    return network, dataclasses.asdict(report)


def choose_strategy(
    strategy: str,
    strategies: Strategies,
    auto: AutoOptions,
    training: TrainingOptions,
    network: nn.Module,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    activation_options: ActivationOptions,
    seed: int,
    activation_cache: Callable[[float], ActivationCache],
) -> tuple[Strategy, dict[str, str], pd.DataFrame, go.Figure]:
    """Return the strategy, named or chosen by the data, why, and the probes it was chosen by.

    Epochs and rate of `training`, if given, hold in every phase.
    """
    probes = pd.DataFrame(columns=probing.COLUMNS)
    if strategy != AUTO:
        choice = probing.Choice(
            strategy, strategies.root[strategy], "named by the parameter strategy"
        )
    elif auto.by == "size":
        images = int((splits["split"] == "train").sum())
        choice = probing.choose_by_size(images, strategies.root, auto)
    else:
        store = activation_cache(activation_options.max_gb)
        probes = probing.probe_stages(
            network, splits, image_transforms, training, seed, effective_images, store
        )
        choice = probing.choose_by_probes(probes, strategies.root, auto)
    if strategy == AUTO:
        logger.info("Strategy auto: %s", choice.reason)
    overrides = {"epochs": training.epochs, "lr": training.lr}
    update = {name: value for name, value in overrides.items() if value is not None}
    phases = tuple(phase.model_copy(update=update) for phase in choice.strategy.phases)
    return (
        choice.strategy.model_copy(update={"phases": phases}),
        {"strategy": strategy, "chosen_strategy": choice.name, "strategy_reason": choice.reason},
        probes,
        stage_probes(probes),
    )


def freeze_layers(network: nn.Module, chosen_strategy: Strategy) -> tuple[nn.Module, pd.DataFrame]:
    """Return the network as the first phase trains it, and the report on all phases."""
    report = freezing.freeze_report(network, chosen_strategy.phases)
    table = Table(*report.columns, title="What is frozen, what is trained")
    for row in report.itertuples(index=False):
        table.add_row(
            *(
                f"{v:.3g}" if isinstance(v, float) else f"{v:,}" if isinstance(v, int) else v
                for v in row
            )
        )
    rich_print(table)
    return network, report


def training_arguments(
    network: nn.Module,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    model: ModelOptions,
    options: TrainingOptions,
    augmentation: AugmentationOptions,
    store: ActivationCache,
    seed: int,
) -> dict[str, Any]:
    """Return the arguments of `training.prepare` that the parameters say."""
    return {
        "network": network,
        "splits": splits,
        "transforms": image_transforms,
        "options": options,
        "seed": seed,
        "views": augmentation.views_per_image,
        "store": store,
        "log_probabilities": model.log_probabilities,
        "mix": transforms.make_mix(augmentation, splits["class_index"].nunique()),
    }


def train_model(
    frozen_network: nn.Module,
    chosen_strategy: Strategy,
    strategy_choice: dict[str, str],
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    model: ModelOptions,
    options: TrainingOptions,
    augmentation: AugmentationOptions,
    activation_options: ActivationOptions,
    engine: EngineOptions,
    seed: int,
    activation_cache: Callable[[float], ActivationCache],
    training_checkpoints: TrainingCheckpoints,
    metric_logger: Callable[[dict[str, Any], int], None],
) -> tuple[Classifier, Classifier, pd.DataFrame, list[dict[str, Any]], go.Figure]:
    """Return the best and the last classifier, history, freeze contract and learning curves."""
    store = activation_cache(activation_options.max_gb)
    arguments = training_arguments(
        frozen_network, splits, image_transforms, model, options, augmentation, store, seed
    )
    phases = chosen_strategy.phases
    if engine.name == "ray":
        result = ray_engine.train(arguments, phases, engine, training_checkpoints, metric_logger)
    else:
        setup = training.prepare(**arguments)
        result = training.train(setup, phases, training_checkpoints, metric_logger)
    if result.best_epoch:
        best_val_accuracy = result.history["val_accuracy"].iloc[result.best_epoch - 1]
        metric_logger({"best_val_accuracy": best_val_accuracy}, result.best_epoch)
    seen = frozenset(hash_files(splits.loc[splits["split"] != "test", "path"].tolist()))
    if chosen_strategy.weights is None:
        seen |= read_ancestors(model) or frozenset()
    best_classifier, last_classifier = (
        Classifier(
            network=_with_state(frozen_network, state),
            class_names=class_names(splits),
            preprocessing=image_transforms.preprocessing,
            model=model,
            training={
                "epoch": epoch,
                "seed": seed,
                **strategy_choice,
                **chosen_strategy.model_dump(mode="json"),
            },
            seen=seen,
        )
        for state, epoch in (
            (result.best, result.best_epoch),
            (result.last, len(result.history)),
        )
    )
    curves = learning_curves(result.history, result.best_epoch)
    return best_classifier, last_classifier, result.history, result.freeze_contract, curves


def describe_stages(
    network: nn.Module,
    chosen_strategy: Strategy,
    history: pd.DataFrame,
    image_transforms: transforms.Transforms,
) -> tuple[pd.DataFrame, go.Figure]:
    """Return what each phase does with each stage, and the same drawn with its thaw lines."""
    size = image_transforms.preprocessing.size
    table = model_summary.describe_stages(network, chosen_strategy.phases, history, size)
    return table, stage_figure(table)


def measure_weight_change(
    network: nn.Module,
    classifier: Classifier,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    options: TrainingOptions,
    activation_options: ActivationOptions,
    activation_cache: Callable[[float], ActivationCache],
) -> tuple[pd.DataFrame, go.Figure]:
    """Return how far training moved each stage from where it began, and the same drawn."""
    store = activation_cache(activation_options.max_gb)
    change = model_summary.weight_change(
        network, classifier.network, splits, image_transforms, options, store
    )
    return change, weight_change_figure(change)


def find_lr(
    network: nn.Module,
    chosen_strategy: Strategy,
    splits: pd.DataFrame,
    image_transforms: transforms.Transforms,
    model: ModelOptions,
    options: TrainingOptions,
    sweep: LrFindOptions,
    augmentation: AugmentationOptions,
    activation_options: ActivationOptions,
    seed: int,
    activation_cache: Callable[[float], ActivationCache],
) -> tuple[pd.DataFrame, dict[str, float], go.Figure]:
    """Return the loss at rising rates in the first phase, the rate it suggests, and the curve."""
    phase = chosen_strategy.phases[0]
    store = activation_cache(activation_options.max_gb)
    unmixed = augmentation.model_copy(update={"mixup": 0, "cutmix": 0})
    arguments = training_arguments(
        network, splits, image_transforms, model, options, unmixed, store, seed
    )
    curve = lr_find.find_lr(training.prepare(**arguments), phase, sweep)
    suggested = lr_find.suggest_lr(curve)
    logger.info("Suggested: training.lr=%.2g (the first phase has %g)", suggested, phase.lr)
    return curve, {"suggested_lr": suggested}, lr_curve(curve, suggested, phase.lr)


def package_model(classifier: Classifier, splits: pd.DataFrame) -> ServedModel:
    """Return the classifier with two files that show how it is asked."""
    paths = splits.loc[splits["split"] == "test", "path"].head(EXAMPLES)
    examples = [read_bytes(path) for path in paths]
    return ServedModel(classifier, examples)


def evaluate_model(
    classifier: Classifier,
    splits: pd.DataFrame,
    options: EvaluationOptions,
    training: TrainingOptions,
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame, go.Figure]:
    """Return metrics, metrics by class, predictions and confusion matrix of the test split."""
    predictions = predict_split(classifier, splits, "test", options.batch_size, training)
    predictions.attrs = splits.attrs
    metrics, per_class, confusion = compute_metrics(predictions, options)
    logger.info(
        "Test accuracy %.4f, 95 %% interval %.4f to %.4f, macro F1 %.4f, on %d images",
        metrics["test_accuracy"],
        metrics["test_accuracy_low"],
        metrics["test_accuracy_high"],
        metrics["test_macro_f1"],
        metrics["test_images"],
    )
    return metrics, per_class, predictions, confusion_matrix(confusion)


def register_model(
    model_uri: str | None,
    predictions: pd.DataFrame,
    classifier: Classifier,
    options: RegistryOptions,
    model: ModelOptions,
    dataset: DatasetOptions,
    evaluation_options: EvaluationOptions,
    training: TrainingOptions,
    registry: OpenRegistry,
) -> dict[str, Any]:
    """Return which version the model became, whether it is the champion, and why."""
    hashes = hash_files(predictions["path"].tolist())
    answers = dict(zip(hashes, predictions["prediction"], strict=True))

    def judge(champion: registration.Champion | None) -> registration.Verdict:
        batch_size = evaluation_options.batch_size
        seen = classifier.seen
        return registration.judge(predictions, hashes, seen, champion, batch_size, training)

    name = options.name
    if name == AUTO:
        name = registration.model_name(dataset.root, classifier.class_names)
    result = registry(name, model).register(model_uri, answers, judge)
    result["next_prediction"] = registration.next_prediction(result, classifier.class_names)
    level = logging.INFO if "registered_version" in result else logging.WARNING
    logger.log(level, "Registry: %s", result["registration_reason"])
    return result


def _with_state(network: nn.Module, state: training.State) -> nn.Module:
    """Return a copy of the network on the CPU, in evaluation mode, with other weights."""
    twin = copy.deepcopy(network).cpu().eval()
    twin.load_state_dict(state)
    return twin
