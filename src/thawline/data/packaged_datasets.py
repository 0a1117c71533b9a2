"""Write the packaged data sets of scikit-learn and torchvision as image files."""

import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thawline.data.decoding import show_progress
from thawline.errors import DataError

LIBRARIES = ("sklearn", "torchvision")  # before the colon in `dataset.root`


def write_packaged(root: str, target: Path) -> Path:
    """Write `sklearn:digits` or `torchvision:NAME` as PNG files, unless `target` exists; return it.

    Torchvision's downloads are kept beside it.

    Raises:
        DataError: if there is no such data set, or its download fails.
    """
    if root.startswith("sklearn:") and root != "sklearn:digits":
        raise DataError(f"dataset.root: '{root}' is unknown; scikit-learn has sklearn:digits.")
    if target.is_dir():
        return target
    images = _torchvision_images(target) if root.startswith("torchvision:") else _digits()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        unfinished = Path(temporary, target.name)
        for name, image in show_progress(images, f"Writing {target.name}"):
            file = unfinished / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has written the same images
                raise
    return target


def _digits() -> Iterator[tuple[str, Image.Image]]:
    """Yield scikit-learn's 1,797 handwritten digits, 8 x 8 px, named class/number."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)  # values are 0 to 16
    for idx, (pixels, label) in enumerate(zip(gray, digits.target, strict=True)):
        yield f"{label}/{idx:04d}", Image.fromarray(pixels)


def _torchvision_images(target: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield the images of a torchvision data set, named split/class/number or class/number."""
    from torchvision import datasets

    name, folder = target.name, target.parent / "torchvision"
    known = [n for n in datasets.__all__ if n not in ("ImageFolder", "DatasetFolder", "FakeData")]
    if name not in known:
        raise DataError(
            f"dataset.root: torchvision has no data set '{name}'. It has {', '.join(known)}."
        )
    constructor, written, problem = getattr(datasets, name), set[str](), ""
    for split, arguments in _split_arguments(constructor):
        if split in written:
            continue
        try:
            dataset = constructor(folder, **arguments)
        except (ValueError, TypeError) as error:  # torchvision's errors for an unknown split
            problem = str(error)
            continue
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"dataset.root: torchvision:{name} could not be downloaded to {folder} ({error})."
                " Download it to that folder yourself, or use a folder of images."
            ) from error
        written.add(split)
        names = getattr(dataset, "classes", [])  # of ImageNet, each is several synonyms
        names = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]
        classes = [name.replace("/", "-") for name in names]
        for idx, (image, label) in enumerate(dataset):
            class_folder = classes[label] if classes else str(label)
            yield Path(split, class_folder, f"{idx:06d}").as_posix(), image
    if not written:
        raise DataError(
            f"dataset.root: '{name}' is not a data set of images with one label each ({problem})."
        )


def _split_arguments(constructor: Any) -> list[tuple[str, dict[str, Any]]]:
    """Return splits of a torchvision data set, each with the arguments to try, in order."""
    parameters = inspect.signature(constructor).parameters
    common = {"download": True} if "download" in parameters else {}
    if "train" in parameters:
        return [("train", common | {"train": True}), ("test", common | {"train": False})]
    if "split" in parameters:
        names = (("train", "train"), ("train", "trainval"), ("val", "val"), ("val", "valid"))
        return [(split, common | {"split": name}) for split, name in (*names, ("test", "test"))]
    return [("", common)]
