"""Export a classifier's network as ONNX, and check that its outputs are the same."""

import platform
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchvision.transforms import v2

from thawline.data.transforms import normalize
from thawline.errors import ExportError, first_line
from thawline.networks.classifier import Classifier

PACKAGES = ("thawline", "torch", "onnx", "onnxruntime")
BATCH_SIZES = (1, 2, 7)
TOLERANCE = 1e-4
MAX_BYTES = 2**31  # of a file in protobuf's format
INPUT, OUTPUT = "images", "logits"

OnnxModel = tuple[bytes, dict[str, Any]]  # a file, and how to use it without Thawline


def export_onnx(classifier: Classifier) -> OnnxModel:
    """Export the network as ONNX, for batches of any size, with a description of its use.

    onnxruntime runs it on the CPU for batches of 1, 2 and 7 photographs and noise.

    Raises:
        ExportError: if a package of the extra `onnx` is missing, the network cannot be exported, or
            an output differs from the network's by more than 1e-4 of the largest (at least 1e-4).
    """
    for package in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(package) is None:
            raise ExportError(
                f"The export to ONNX needs the package {package}, which is not installed. Run: pip"
                " install 'thawline[onnx]'"
            )
    images = _check_images(classifier)
    network = Scaled(classifier.network.cpu().eval(), classifier.calibration.temperature)
    model = _to_onnx(network, images[:2])
    difference = _check(model, network, images)
    return model, _describe(classifier, difference)


class Scaled(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, C)."""
        logits: Tensor = self.network(images)
        return logits / self.temperature


def _to_onnx(network: Scaled, images: Tensor) -> bytes:
    """Return the ONNX file of a network for batches of such images."""
    name = type(network.network).__name__
    tensors = [*network.parameters(), *network.buffers()]
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors) >= MAX_BYTES:
        raise ExportError(f"{name} is too large: an ONNX file holds up to 2 GB.")
    try:
        program = torch.onnx.export(
            network,
            (images,),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        return program.model_proto.SerializeToString()
    except (torch.onnx.OnnxExporterError, ValueError) as error:
        raise ExportError(
            f"{name} cannot be exported to ONNX"
            f" ({first_line(error.__cause__ or error)}). Its control flow must not depend on the"
            " values of the images; see the documentation of torch.export."
        ) from error


def _check(model: bytes, network: nn.Module, images: Tensor) -> float:
    """Return the largest difference between the outputs of ONNX file and network, if tolerable."""
    from onnxruntime import InferenceSession

    session = InferenceSession(model, providers=["CPUExecutionProvider"])
    largest = 0.0
    for count in BATCH_SIZES:
        batch = images[:count]
        with torch.inference_mode():
            wanted = network(batch).numpy()
        (found,) = session.run([OUTPUT], {INPUT: batch.numpy()})
        difference = float(np.abs(found - wanted).max())
        if not difference <= TOLERANCE * max(1.0, float(np.abs(wanted).max())):
            raise ExportError(
                f"The ONNX file has other outputs than the network: for a batch of {count} they"
                f" differ by up to {difference:.3g}, more than {TOLERANCE:g}. Nothing was written."
                " Check whether the network draws random numbers or depends on the batch."
            )
        largest = max(largest, difference)
    return largest


def _check_images(classifier: Classifier) -> Tensor:
    """Return crops of scikit-learn's photographs, and noise, as the network sees them."""
    size = classifier.preprocessing.size
    photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2)
    resize = v2.Resize([size, size], antialias=True)
    crops = [resize(photos[idx % 2, :, 40 * idx :, 60 * idx :]) for idx in range(5)]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (2, 3, size, size), generator=generator, dtype=torch.uint8)
    images = torch.stack([noise[0], *crops, noise[1]])
    return normalize(images, classifier.preprocessing)


def _describe(classifier: Classifier, difference: float) -> dict[str, Any]:
    """Describe how to use the file."""
    preprocessing = classifier.preprocessing
    size = preprocessing.size
    return {
        "input": {
            "name": INPUT,
            "shape": ["batch", 3, size, size],
            "axes": "image, channel (red, green, blue), row, column",
        },
        "preprocessing": {
            "steps": [
                "turn the image as its EXIF orientation says",
                "scale a grayscale image of more than 8 bits per pixel to 8 bits, rounded half to"
                " even: white, 255, is 2^bit_depth - 1 and above; for bit_depth auto it is 65535 in"
                " a file of integers and 1 in one of floats",
                "lay transparency over white; convert to RGB",
                "resize so that the shorter side has resize_shorter_side pixels and the longer one"
                " int(resize_shorter_side * longer / shorter), with Pillow's Image.resize, which"
                " smooths when it makes an image smaller (antialiasing)",
                "crop center_crop pixels square: left = round((width - center_crop) / 2), top"
                " likewise, half to even",
                "multiply by scale, subtract mean, divide by std, channel by channel",
            ],
            "bit_depth": preprocessing.bit_depth,
            "resize_shorter_side": preprocessing.resize,
            "interpolation": preprocessing.interpolation,
            "center_crop": size,
            "scale": 1 / 255,
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
        "output": {
            "name": OUTPUT,
            "softmax": "not applied: a softmax over the classes gives probabilities",
            "temperature": "applied; prediction sets and refusals are not in the file",
        },
        "class_names": list(classifier.class_names),
        "check": {"batch_sizes": list(BATCH_SIZES), "largest_difference": difference},
        "training": classifier.training,
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
    }
