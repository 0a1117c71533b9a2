"""Write the packaged data sets of scikit-learn and torchvision as image files."""

import inspect
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from thawline.data.splitting import SPLITS
from thawline.errors import DataError

LIBRARIES = ("sklearn", "torchvision")  # before the colon in `dataset.root`


def write_packaged(root: str, target: Path) -> Path:
    """Write `sklearn:digits` or `torchvision:NAME` as PNG files, unless `target` exists; return it.

    Torchvision's downloads are kept beside it.

    Raises:
        DataError: if there is no such data set, or its download fails.
    """
    if root == "sklearn:digits":
        _write_once(target, _digits())
    elif root.startswith("sklearn:"):
        raise DataError(f"dataset.root: '{root}' is unknown; scikit-learn has sklearn:digits.")
    else:
        _write_once(target, _torchvision_images(target.name, target.parent / "torchvision"))
    return target


def _write_once(target: Path, images: Iterable[tuple[str, Any]]) -> None:
    """Write named images as PNG files under `target`, atomically, unless it exists."""
    if target.is_dir():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        unfinished = Path(temporary, target.name)
        for name, image in track(images, f"Writing {target.name}", transient=True):
            file = unfinished / f"{name}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        try:
            unfinished.rename(target)
        except OSError:
            if not target.is_dir():  # else another process has written the same images
                raise


def _digits() -> Iterator[tuple[str, Image.Image]]:
    """Yield scikit-learn's 1,797 handwritten digits, 8 x 8 px, named class/number."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)  # values are 0 to 16
    for idx, (pixels, label) in enumerate(zip(gray, digits.target, strict=True)):
        yield f"{label}/{idx:04d}", Image.fromarray(pixels)


def _torchvision_images(name: str, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield the images of a torchvision data set, named split/class/number or class/number."""
    from torchvision import datasets

    constructor = getattr(datasets, name, None)
    known = [n for n in datasets.__all__ if n not in ("ImageFolder", "DatasetFolder", "FakeData")]
    if name not in known or constructor is None:
        raise DataError(
            f"dataset.root: torchvision has no data set '{name}'. It has {', '.join(known)}."
        )
    found = 0
    for split, alternatives in _split_arguments(constructor).items():
        opened = (_open_torchvision(constructor, folder, choice) for choice in alternatives)
        dataset = next((one for one in opened if one is not None), None)
        if dataset is not None:
            found += 1
            yield from _named_images(split, dataset)
    if not found:
        raise DataError(f"dataset.root: '{name}' is not a data set of images with one label each.")


def _split_arguments(constructor: Any) -> dict[str, list[dict[str, Any]]]:
    """Return the arguments to try, in order, for each split of a torchvision data set."""
    parameters = inspect.signature(constructor).parameters
    if "train" in parameters:
        return {"train": [{"train": True}], "test": [{"train": False}]}
    if "split" in parameters:
        splits: dict[str, list[dict[str, Any]]] = {name: [{"split": name}] for name in SPLITS}
        splits["train"].append({"split": "trainval"})
        return splits
    return {"": [{}]}


def _open_torchvision(constructor: Any, folder: Path, arguments: dict[str, Any]) -> Any:
    """Return a torchvision data set, downloaded if necessary, or None if it lacks the split."""
    try:
        return constructor(folder, download=True, **arguments)
    except (ValueError, TypeError):  # torchvision's errors for an unknown split
        return None
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"dataset.root: torchvision:{constructor.__name__} could not be downloaded to"
            f" {folder} ({error}). Download it to that folder yourself, or use a folder of images."
        ) from error


def _named_images(split: str, dataset: Any) -> Iterator[tuple[str, Image.Image]]:
    classes = [str(name).replace("/", "-") for name in getattr(dataset, "classes", [])]
    for idx, (image, label) in enumerate(dataset):
        folder = Path(split, classes[label] if classes else str(label))
        yield (folder / f"{idx:06d}").as_posix(), image
