"""Networks of the user's own: import a factory and call it."""

import importlib
import inspect
import logging
import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from thawline.errors import ParameterError
from thawline.networks.checkpoints import WEIGHT_FILES
from thawline.options import ModelOptions

logger = logging.getLogger(__name__)


def build(options: ModelOptions, classes: int) -> nn.Module:
    """Return the network that ``package.module:Factory`` makes; a builtin head gets `classes`."""
    _check_weights(options)
    factory = _import_factory(options.backbone)
    kwargs = dict(options.backbone_kwargs)
    if options.head == "builtin":
        _check_num_classes(options, factory)
        kwargs["num_classes"] = classes
    network = factory(**kwargs)
    if not isinstance(network, nn.Module):
        raise ParameterError(
            f"model.backbone: {options.backbone} returned a {type(network).__name__}, expected an"
            " nn.Module."
        )
    return network


def _check_weights(options: ModelOptions) -> None:
    """Refuse names of weights; warn that the default is random weights."""
    if options.weights == "default":
        logger.warning(
            "model.weights: default means random weights for your own network %s. Give a file, or"
            " set none to silence this warning.",
            options.backbone,
        )
    elif options.weights != "none":
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" none, or a file ending in {', '.join(WEIGHT_FILES)})."
        )


def _import_factory(backbone: str) -> Callable[..., Any]:
    """Import ``package.module:Factory`` from installed packages or the current folder."""
    module, _, factory = backbone.partition(":")
    if "" not in sys.path:  # last, so that no file in the project hides an installed module
        sys.path.append("")
    try:
        return getattr(importlib.import_module(module), factory)
    except (ImportError, AttributeError) as error:
        raise ParameterError(
            f"model.backbone: '{backbone}' cannot be imported ({error}). Give"
            " package.module:Factory, importable from the folder that you run the command in."
        ) from error


def _check_num_classes(options: ModelOptions, factory: Callable[..., Any]) -> None:
    """Refuse a factory without a parameter `num_classes`, or a value that the user gives for it."""
    signature = inspect.signature(factory)
    if "num_classes" not in signature.parameters:
        raise ParameterError(
            f"model.head: builtin needs a parameter num_classes of {options.backbone}, which takes"
            f" {signature}. Add it, or set model.head=linear or mlp."
        )
    if "num_classes" in options.backbone_kwargs:
        raise ParameterError(
            f"model.backbone_kwargs.num_classes: {options.backbone_kwargs['num_classes']!r} is"
            " given, but with model.head=builtin it comes from the data. Delete it."
        )
