"""Trainings that nodes run: by parameters, from splits to a classifier."""

import copy
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import nn
from torch.nn.functional import normalize

from thawline.data.splitting import class_names
from thawline.data.transforms import Transforms
from thawline.errors import ParameterError
from thawline.evaluation.calibration import calibrate
from thawline.evaluation.inference import find_nearest
from thawline.evaluation.predictions import as_arrays, predict_split, tabulate
from thawline.evaluation.weight_averages import apply_wise_ft
from thawline.networks import building
from thawline.networks.classifier import Classifier
from thawline.networks.weights import LoadReport
from thawline.options import AUTO, Parameters
from thawline.pipelines.finetune.nodes import build_transforms
from thawline.sweep import auto
from thawline.thaw.cache import ActivationCache
from thawline.thaw.stage_features import read_head
from thawline.training import loop, ray_engine, setup
from thawline.training.progress import OnEpoch, State, TrainingResult
from thawline.training.state import TrainingCheckpoints

logger = logging.getLogger(__name__)

MAX_REFERENCE = 250  # training images that others are compared with: 0.6 MB


def build_network(
    parameters: Parameters, splits: pd.DataFrame, size: int
) -> tuple[nn.Module, LoadReport]:
    """Return the network of a strategy with a head for the classes of the splits."""
    asked = parameters.model
    if parameters.strategy != AUTO:
        parameters = parameters.with_strategy(parameters.strategy)
    if parameters.model.weights != asked.weights:
        logger.info("The strategy starts from random weights instead of %s", asked.weights)
    names = class_names(splits)
    return building.build_network(parameters.model, len(names), size, parameters.seed, names)


def training_arguments(
    parameters: Parameters, splits: pd.DataFrame, activations: Path
) -> ray_engine.Arguments:
    """Return what `setup.prepare` takes, for parameters with a strategy that is not auto."""
    image_transforms = build_transforms(parameters)
    network, _ = build_network(parameters, splits, image_transforms.preprocessing.size)
    cache = ActivationCache(activations, parameters.activations.max_gb)
    return parameters, network, splits, image_transforms, cache


def run_training(
    arguments: ray_engine.Arguments,
    checkpoints: TrainingCheckpoints | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingResult:
    """Train in this process or on Ray, then average weights if `training.wise_ft` says so."""
    parameters, phases = arguments[0], arguments[0].phases
    if parameters.engine.name == "ray":
        result = ray_engine.train(arguments, phases, checkpoints, on_epoch)
    else:
        result = loop.train(setup.prepare(*arguments), phases, checkpoints, on_epoch)
    return apply_wise_ft(arguments, result) if parameters.training.wise_ft else result


def try_training(
    arguments: ray_engine.Arguments, checkpoints: TrainingCheckpoints | None
) -> auto.Trained:
    """Train, and see which validation images the best epoch has right."""
    start = time.perf_counter()
    parameters, network, splits, image_transforms, _ = arguments
    result = run_training(arguments, checkpoints)
    classifier = make_classifier(parameters, network, result.best, splits, image_transforms)
    batch_size = parameters.evaluation.batch_size
    predictions = predict_split(classifier, splits, "val", batch_size, parameters.training)
    *_, correct = as_arrays(predictions)
    size, measured = image_transforms.preprocessing.size, time.perf_counter() - start
    seconds = max(measured, result.history["seconds"].sum())  # it may have been resumed
    said = "%s at %d px: validation accuracy %.3f after %.0f s"
    logger.info(said, parameters.strategy, size, correct.mean(), seconds)
    return auto.Trained(parameters, result, correct, size, seconds)


def make_classifier(
    parameters: Parameters,
    network: nn.Module,
    state: State,
    splits: pd.DataFrame,
    image_transforms: Transforms,
    training: dict[str, Any] | None = None,
    seen: frozenset[str] = frozenset(),
) -> Classifier:
    """Return a network in some state of its training as a classifier; it stays as it is."""
    network = copy.deepcopy(network).cpu().eval()
    network.load_state_dict(state)
    names, preprocessing = class_names(splits), image_transforms.preprocessing
    return Classifier(network, names, preprocessing, parameters.model, training or {}, seen)


def calibrate_classifier(
    parameters: Parameters, classifier: Classifier, splits: pd.DataFrame, activations: Path
) -> Classifier:
    """Return a classifier with a calibration by the validation images.

    What its head receives for them is in the cache since they were evaluated in training, unless
    the layers below were trained.
    """
    rows = splits[splits["split"] == "val"].reset_index(drop=True)
    known = sample_images(splits, parameters.seed)
    cache = ActivationCache(activations, parameters.activations.max_gb)
    calibration = classifier.calibration
    try:
        features, logits = read_head(classifier, [*known["path"], *rows["path"]], parameters, cache)
    except ParameterError as error:
        logger.info("Images of another kind cannot be told apart: %s", error)
        size = parameters.evaluation.batch_size
        validation = predict_split(classifier, splits, "val", size, parameters.training)
    else:
        reference = normalize(features[: len(known)]).half()
        distances, _ = find_nearest(features[len(known) :], reference)
        probabilities = logits[len(known) :].softmax(dim=1)
        uniform = np.random.default_rng(parameters.seed).random(len(rows))
        own = probabilities.numpy(), distances.numpy(), uniform
        validation = tabulate(rows, classifier.class_names, *own)
        images = tuple(zip(known["path"], known["label"], strict=True))
        calibration = replace(calibration, reference=reference, reference_images=images)
    calibration, why = calibrate(calibration, validation, parameters.serving, parameters.seed)
    logger.debug("Temperature %.3f: %s", calibration.temperature, why)
    training = classifier.training | {"temperature_reason": why}
    return replace(classifier, calibration=calibration, training=training)


def sample_images(splits: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return up to 250 training images that others are compared with, one of a group."""
    train = splits[splits["split"] == "train"]
    if "group" in train:
        train = train.groupby("group").sample(1, random_state=seed)
    return train.sample(min(MAX_REFERENCE, len(train)), random_state=seed)
