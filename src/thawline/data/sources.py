"""Find and decode image files."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image
from rich.progress import track

from thawline.data import manifests, shards
from thawline.errors import DataError

logger = logging.getLogger(__name__)

SPLITS = manifests.SPLITS
# As torchvision's ImageFolder takes them.
IMG_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip
TABLES = (".csv", ".parquet")
LIBRARIES = ("sklearn", "torchvision")  # before a colon in `dataset.root`


def find_images(
    root: str, base: Path, packaged_folder: Path, allow_external_paths: bool = False
) -> pd.DataFrame:
    """Return the manifest of a data set: path, label and, if the data brings them, split and group.

    Args:
        root: a folder per class; a folder with train/, val/ and perhaps test/ in it; a CSV or
            Parquet file for `manifests.read_manifest`; `torchvision:NAME`; `sklearn:digits`.
        base: folder that a relative `root` is relative to.
        packaged_folder: where data sets of a package are downloaded to and written as image files.
        allow_external_paths: whether such a file may name images outside of its folder.

    Returns:
        One row per image, sorted by path; paths are absolute. `attrs` names the folder that they
        are saved relative to, itself relative to `base` if it is given so or lies within.

    Raises:
        DataError: when there is nothing at `root`, or not what it should be.
    """
    folder = find_root(root, base, packaged_folder)
    if root == "sklearn:digits":
        _write_once(folder, _digits())
    elif root.startswith("sklearn:"):
        raise DataError(f"dataset.root: '{root}' is unknown; scikit-learn has sklearn:digits.")
    elif root.startswith("torchvision:"):
        _write_once(folder, _torchvision_images(folder.name, packaged_folder / "torchvision"))
    is_packaged = root.partition(":")[0] in LIBRARIES
    path = folder if is_packaged else (base / Path(root).expanduser()).resolve()
    if path.is_dir():
        manifest = _scan_folder(path)
    elif path.is_file() and path.suffix.lower() in TABLES:
        manifest = manifests.read_manifest(path, allow_external_paths)
    else:
        raise _no_data(root, path)
    is_relative = folder.is_relative_to(base.resolve()) or not Path(root).expanduser().is_absolute()
    recorded = os.path.relpath(folder, base.resolve()) if is_relative else folder
    manifest.attrs[manifests.ROOT] = Path(recorded).as_posix()
    return manifest


def find_root(root: str, base: Path, packaged_folder: Path) -> Path:
    """Return the folder that all images of a data set are in; it need not exist.

    Args:
        root: as of `find_images`; of a table it is the table's folder.
        base: folder that a relative `root` is relative to.
        packaged_folder: where data sets of a package are.
    """
    library, _, name = root.partition(":")
    if library in LIBRARIES:
        return (packaged_folder / name).resolve()
    path = (base / Path(root).expanduser()).resolve()
    return path.parent if path.suffix.lower() in TABLES and not path.is_dir() else path


def _no_data(root: str, path: Path) -> DataError:
    found = "is neither a folder nor a CSV or Parquet file" if path.exists() else "does not exist"
    return DataError(
        f"dataset.root: '{root}' {found} ({path}). Give a folder with one folder of images per"
        " class, a folder with train/ and val/ in it, a CSV or Parquet file with the columns"
        " path and label, torchvision:NAME, or sklearn:digits."
    )


def find_files(root: str, base: Path) -> list[str]:
    """Return the absolute paths of all files in a folder and the folders in it, in order.

    Hidden files and folders (named `.something`), and what is no file, such as a pipe, are left
    out. Links to folders are not followed; a folder that cannot be listed stands for its files.

    Args:
        root: the folder.
        base: folder that a relative `root` is relative to.

    Raises:
        DataError: when there is no such folder, or no file in it.
    """
    folder = (base / Path(root).expanduser()).resolve()
    if not folder.is_dir():
        found = "is not a folder" if folder.exists() else "does not exist"
        raise DataError(
            f"predict.root: '{root}' {found} ({folder}). Give a folder; all images in it and in its"
            " folders are looked at."
        )
    closed: list[str] = []
    files: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=lambda e: closed.append(e.filename)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(parent, name) for name in names if not name.startswith(".")]
        files += [path.as_posix() for path in paths if path.is_file() or not path.exists()]
    if not files:
        raise DataError(f"predict.root: {folder} holds no file. Give a folder with images in it.")
    return sorted(files + closed)


def name_files(paths: Sequence[str], root: str = "", *, base: Path) -> list[str]:
    """Return the absolute paths of files.

    Args:
        paths: of files; relative ones are those in `base`, or else in `root`, as in the tables.
        root: folder of the images, itself relative to `base` or absolute.
        base: the project.

    Raises:
        DataError: when there is no such file.
    """
    folders = (base, base / root)
    possible = [[(f / Path(path).expanduser()).resolve() for f in folders] for path in paths]
    files = [next(filter(manifests.is_file, places), places[0]) for places in possible]
    for path, file in zip(paths, files, strict=True):
        if not manifests.is_file(file):
            found = "is no file" if file.exists() else "does not exist"
            raise DataError(
                f"explain.images: '{path}' {found} ({file}). Give worst, or paths of image files;"
                " with --params separated by blanks, and in a YAML file as a list."
            )
    return [file.as_posix() for file in files]


def _scan_folder(root: Path) -> pd.DataFrame:
    """Return the manifest of a folder per class or of shards, or of such in train/, val/…."""
    splits = [name for name in SPLITS if (root / name).is_dir()]
    if "train" not in splits:
        return _scan_classes(root)
    tables = [_scan_classes(root / name).assign(split=name) for name in splits]
    manifest = pd.concat(tables, ignore_index=True)
    classes = set(tables[0]["label"])
    for name, table in zip(splits, tables, strict=True):
        odd = sorted(classes ^ set(table["label"]))
        if odd:
            raise DataError(
                f"dataset.root: the class '{odd[0]}' is not in both {root / 'train'} and"
                f" {root / name}. Every split needs the same classes."
            )
    return manifest


def _scan_classes(folder: Path) -> pd.DataFrame:
    """Return the manifest of a folder per class, or of the shards in a folder without folders."""
    names = sorted(path.name for path in folder.glob("[!.]*") if path.is_file())
    if any(path.is_dir() for path in folder.glob("[!.]*")):
        return pd.DataFrame(_rows(folder))
    if compressed := [name for name in names if name.endswith(shards.COMPRESSED)]:
        raise DataError(
            f"dataset.root: {folder / compressed[0]} is compressed: no image in it can be read"
            " without all before it. Write it again as .tar; photographs do not get smaller anyway."
        )
    found = [folder / name for name in names if name.endswith(shards.SUFFIX)]
    return _scan_shards(found) if found else pd.DataFrame(_rows(folder))


def _scan_shards(files: Sequence[Path]) -> pd.DataFrame:
    """Return the manifest of shards; its labels are categories."""
    paths, labels = [], []
    for file in track(files, "Reading shards", transient=True):
        rows = list(shards.find_labeled(file.as_posix(), IMG_EXTENSIONS))
        paths.append(pa.array([_as_text(path) for path, _ in rows], pa.large_string()))
        labels.append(pa.array([label for _, label in rows], pa.large_string()))
    if not any(map(len, paths)):
        raise DataError(
            f"dataset.root: the shards in {files[0].parent} hold no image"
            f" ({', '.join(IMG_EXTENSIONS)}) with a label (KEY.cls, or KEY.json)."
        )
    texts, order = manifests.sort_texts(paths)
    label = manifests.categorical(labels).take(order)
    return pd.DataFrame({"path": pd.Series(texts, dtype="str"), "label": label}, copy=False)


def _rows(folder: Path) -> Iterator[dict[str, str]]:
    """Yield path and label of every image below the class folders of `folder`.

    What cannot be looked into is among them: `thawline.data.screening` says why it is left out.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"dataset.root: {folder} cannot be listed ({error.strerror}). Give yourself the right"
            " to read it."
        ) from error
    classes = [path for path in entries if path.is_dir() and not path.name.startswith(".")]
    if not classes:
        raise DataError(
            f"dataset.root: {folder} holds no folder. Put the images of each class into a folder"
            " named after the class."
        )
    for class_folder in classes:
        files = _files_below(class_folder)
        if not files:
            raise DataError(
                f"dataset.root: the class folder {class_folder} holds no image"
                f" ({', '.join(IMG_EXTENSIONS)}). Add some or remove the folder."
            )
        for file in files:
            yield {"path": _as_text(file), "label": _as_text(class_folder.name)}


def _files_below(folder: Path) -> list[str]:
    """Return files named as images, in order, and folders that are closed or reached by a link.

    Hidden ones (named `.something`) are left out.
    """
    apart: list[str] = []
    found: list[str] = []
    walk = os.walk(folder, onerror=lambda error: apart.append(error.filename))
    for parent, folders, names in walk:
        folders[:] = [name for name in folders if not name.startswith(".")]
        apart += [path for name in folders if Path(path := f"{parent}/{name}").is_symlink()]
        found += [f"{parent}/{name}" for name in names if not name.startswith(".")]
    files = [path for path in found if path.lower().endswith(IMG_EXTENSIONS)]
    if 0 < len(files) < len(found):
        other = next(path for path in sorted(found) if path not in set(files))
        count = len(found) - len(files)
        logger.warning("%d file(s) are no images and are left out, first %s", count, other)
    return sorted(Path(path).as_posix() for path in files + apart)


def _as_text(name: str) -> str:
    r"""Return a name that a CSV keeps: bytes that are no UTF-8 become \udcXX, a CR \udc0d."""
    return name.replace("\r", r"\udc0d").encode("utf-8", "backslashreplace").decode()


def _write_once(target: Path, images: Iterable[tuple[str, Any]]) -> Path:
    """Write images as PNG files under `target`, in whole or not at all; return `target`."""
    if not target.is_dir():
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
                if not target.is_dir():  # else another process was faster with the same images
                    raise
    return target


def _digits() -> list[tuple[str, Image.Image]]:
    """Return scikit-learn's 1,797 handwritten digits, 8 px a side, with a name for each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = (digits.images * (255 / 16)).round().astype(np.uint8)  # the values go from 0 to 16
    return [
        (f"{label}/{idx:04d}", Image.fromarray(pixels))
        for idx, (pixels, label) in enumerate(zip(gray, digits.target, strict=True))
    ]


def _torchvision_images(name: str, folder: Path) -> Iterator[tuple[str, Image.Image]]:
    """Yield the images of a torchvision data set, each named split/class/number or class/number."""
    import inspect

    from torchvision import datasets

    constructor = getattr(datasets, name, None)
    known = [n for n in datasets.__all__ if n not in ("ImageFolder", "DatasetFolder", "FakeData")]
    if name not in known or constructor is None:
        raise DataError(
            f"dataset.root: torchvision has no data set '{name}' (possible: {', '.join(known)})."
        )
    options = inspect.signature(constructor).parameters
    splits: dict[str, list[dict[str, Any]]]
    if "train" in options:
        splits = {"train": [{"train": True}], "test": [{"train": False}]}
    elif "split" in options:
        splits = {name: [{"split": name}] for name in SPLITS}
        splits["train"].append({"split": "trainval"})
    else:
        splits = {"": [{}]}
    found = 0
    for split, alternatives in splits.items():
        opened = (_open_torchvision(constructor, folder, choice) for choice in alternatives)
        dataset = next((one for one in opened if one is not None), None)
        if dataset is not None:
            found += 1
            yield from _named_images(split, dataset)
    if not found:
        raise DataError(f"dataset.root: '{name}' is not a data set of images with one label each.")


def _open_torchvision(constructor: Any, folder: Path, arguments: dict[str, Any]) -> Any:
    """Return a torchvision data set, downloaded if need be, or None if it lacks that split."""
    try:
        return constructor(folder, download=True, **arguments)
    except (ValueError, TypeError):  # torchvision's answer to a split that does not exist
        return None
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"dataset.root: torchvision:{constructor.__name__} could not be downloaded to"
            f" {folder} ({error}). Download it by hand to that folder, or use a folder of images."
        ) from error


def _named_images(split: str, dataset: Any) -> Iterator[tuple[str, Image.Image]]:
    classes = [str(name).replace("/", "-") for name in getattr(dataset, "classes", [])]
    for idx, (image, label) in enumerate(dataset):
        folder = Path(split, classes[label] if classes else str(label))
        yield (folder / f"{idx:06d}").as_posix(), image
