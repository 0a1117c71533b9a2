"""Find images: in class folders, split folders, shards, manifests and packaged data sets."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from thawline.data import shards
from thawline.data.decoding import ImageError, map_threads, open_image, show_progress
from thawline.data.manifests import ROOT, read_manifest
from thawline.data.packaged_datasets import LIBRARIES, write_packaged
from thawline.errors import DataError

logger = logging.getLogger(__name__)

# Those of torchvision's ImageFolder.
IMG_EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp",
)  # fmt: skip
TABLES = (".csv", ".parquet")
SPLIT_NAMES = {  # of folders, in small letters
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
RESULTS = "thawline-runs"  # what the command thawline writes where there is no project: no images


def find_images(
    root: str, base: Path, packaged_folder: Path, allow_external_paths: bool = False
) -> pd.DataFrame:
    """Return the manifest of a data set: path, label and, if the data brings them, split and group.

    Args:
        root: a folder with one folder per class; a folder with train/, val/ and optionally test/;
            a folder of shards; a CSV or Parquet file; `torchvision:NAME`; `sklearn:digits`.
        base: folder that a relative `root` is relative to.
        packaged_folder: where packaged data sets are downloaded to and written as image files.
        allow_external_paths: whether a CSV or Parquet file may list files outside its folder.

    Returns:
        One row per image, sorted by path. Paths are absolute. `attrs` has the folder that tables
        save paths relative to, itself relative to `base` if `root` is or if it lies within `base`.

    Raises:
        DataError: if there is no data set at `root`, or it is invalid.
    """
    folder = find_root(root, base, packaged_folder)
    path = check_root(root, base) or write_packaged(root, folder)
    manifest = _scan_folder(path) if path.is_dir() else read_manifest(path, allow_external_paths)
    is_relative = folder.is_relative_to(base.resolve()) or not Path(root).expanduser().is_absolute()
    recorded = os.path.relpath(folder, base.resolve()) if is_relative else folder
    manifest.attrs[ROOT] = Path(recorded).as_posix()
    return manifest


def check_root(root: str, base: Path) -> Path | None:
    """Return the folder or table of a data set; None for a packaged one.

    Raises:
        DataError: if there is none.
    """
    if root.partition(":")[0] in LIBRARIES:
        return None
    path = (base / Path(root).expanduser()).resolve()
    if path.is_dir() or (path.is_file() and path.suffix.lower() in TABLES):
        return path
    found = "is not a folder, CSV or Parquet file" if path.exists() else "does not exist"
    where = "" if str(path) == root else f" ({path})"
    raise DataError(
        f"dataset.root: '{root}' {found}{where}. Give a folder with one folder of images per"
        " class, a folder with train/ and val/ in it, a CSV or Parquet file with the columns path"
        " and label, torchvision:NAME, or sklearn:digits."
    )


def find_root(root: str, base: Path, packaged_folder: Path) -> Path:
    """Return the folder of all images of a data set, or of its table, whether it exists or not.

    The arguments are those of `find_images`.
    """
    library, _, name = root.partition(":")
    if library in LIBRARIES:
        return (packaged_folder / name).resolve()
    path = (base / Path(root).expanduser()).resolve()
    return path.parent if path.suffix.lower() in TABLES and not path.is_dir() else path


def find_files(root: str, base: Path, parameter: str = "predict.root") -> list[str]:
    """Return the absolute paths of a file, or of all in a folder and its subfolders, sorted.

    Hidden files and folders, and special files such as pipes, are skipped. Links to folders are
    not followed. A folder that cannot be listed is returned in place of its files.

    Raises:
        DataError: if there is no such file or folder, or the folder has no files.
    """
    folder = (base / Path(root).expanduser()).resolve()
    if folder.is_file():
        return [str(folder)]
    if not folder.is_dir():
        where = "" if str(folder) == root else f" ({folder})"
        raise DataError(
            f"{parameter}: '{root}' does not exist{where}. Give an image or a folder of images;"
            " those in its subfolders count too."
        )
    files, _, unlisted = _walk(folder)
    files = [path for path in files if os.path.isfile(path) or not os.path.exists(path)]  # noqa: PTH110, PTH113
    if not files:
        raise DataError(f"{parameter}: {folder} holds no file. Give a folder with images in it.")
    return sorted(files + unlisted)


def find_readable(root: str, base: Path, parameter: str) -> list[str]:
    """Return the `find_files` that are images, and warn of each other one.

    Raises:
        DataError: as `find_files`; or if none is an image.
    """
    paths = []
    files = find_files(root, base, parameter)
    for path, problem in zip(files, map_threads(_problem, files, "Reading images"), strict=True):
        if problem:
            logger.warning("%s: %s is left out: %s", parameter, shards.printable(path), problem)
        else:
            paths.append(path)
    if not paths:
        raise DataError(f"{parameter}: {root} holds no image that can be read.")
    return paths


def _problem(path: str) -> str:
    """Return why an image cannot be used; empty if it can."""
    if shards.printable(path) != path:
        return "its name is not UTF-8 or has a carriage return"
    try:
        with open_image(path) as file:
            file.load()
    except ImageError as error:
        return error.problem
    return ""


def name_files(paths: Sequence[str], root: str = "", *, base: Path) -> list[str]:
    """Return the absolute paths of image files; relative ones are looked up in `base` and `root`.

    Raises:
        DataError: if a file does not exist.
    """
    files = []
    for path in paths:
        candidates = [(f / Path(path).expanduser()).resolve() for f in (base, base / root)]
        file = next(filter(shards.is_file, candidates), candidates[0])
        if not shards.is_file(file):
            found = "is not a file" if file.exists() else "does not exist"
            raise DataError(
                f"explain.images: '{path}' {found} ({file}). Give worst, or paths of image files;"
                " with --params separated by blanks, and in a YAML file as a list."
            )
        files.append(file.as_posix())
    return files


def _scan_folder(root: Path) -> pd.DataFrame:
    """Return the manifest of class folders or shards, or of train/, val/ and test/ with these."""
    folders = [path for path in _list(root) if path.is_dir()]
    found = [(SPLIT_NAMES.get(path.name.lower()), path) for path in folders]
    splits = {name: path for name, path in found if name and _holds_classes(path)}
    if "train" not in splits:
        return _scan_split(root)
    if rest := [path for path in folders if path not in splits.values()]:
        raise DataError(
            f"dataset.root: beside {splits['train']} lies {rest[0]}, which is no split of its own."
            " Name the splits train, val and test, and move other folders elsewhere."
        )
    tables = {name: _scan_split(path).assign(split=name) for name, path in splits.items()}
    classes = set(tables["train"]["label"])
    for name, table in tables.items():
        if unmatched := classes ^ set(table["label"]):
            raise DataError(
                f"dataset.root: the class '{min(unmatched)}' is not in both {splits['train']} and"
                f" {splits[name]}. Every split needs the same classes."
            )
    return pd.concat(tables.values(), ignore_index=True)


def _holds_classes(folder: Path) -> bool:
    """Return whether a folder holds folders or shards; if not, it may be a class named train."""
    return any(path.is_dir() or path.suffix == shards.SUFFIX for path in _list(folder))


def _list(folder: Path) -> list[Path]:
    """Return the entries of a folder that are not hidden, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not _is_skipped(path.name))
    except OSError as error:
        raise DataError(
            f"dataset.root: {folder} cannot be listed ({error.strerror}). Get the permission to"
            " read it."
        ) from error


def _scan_split(folder: Path) -> pd.DataFrame:
    """Return the manifest of class folders, or of shards in a folder without folders."""
    entries = _list(folder)
    if class_folders := [path for path in entries if path.is_dir()]:
        return _scan_classes(class_folders)
    for file in entries:
        if file.name.endswith(shards.COMPRESSED):
            raise DataError(
                f"dataset.root: {file} is compressed, so its images cannot be read one by one."
                " Rewrite it as a plain .tar."
            )
    tars = [path for path in entries if path.suffix == shards.SUFFIX]
    if not tars:
        raise DataError(
            f"dataset.root: {folder} holds no folder. Put the images of each class into a folder"
            " named after the class."
        )
    return _scan_shards(tars)


def _scan_shards(files: Sequence[Path]) -> pd.DataFrame:
    rows: list[tuple[str, str]] = []
    for file in show_progress(files, "Reading shards"):
        found = shards.find_labeled(file.as_posix(), IMG_EXTENSIONS)
        rows += [(shards.printable(path), label) for path, label in found]
    if not rows:
        raise DataError(
            f"dataset.root: the shards in {files[0].parent} hold no image"
            f" ({', '.join(IMG_EXTENSIONS)}) with a label (KEY.cls, or KEY.json)."
        )
    table = pd.DataFrame(rows, columns=["path", "label"])
    return table.sort_values("path", ignore_index=True)


def _scan_classes(folders: Sequence[Path]) -> pd.DataFrame:
    """Return the manifest of class folders; what cannot be listed is left to the screening."""
    rows = []
    for folder in folders:
        files, linked, unlisted = _walk(folder)
        images = [path for path in files if path.lower().endswith(IMG_EXTENSIONS)]
        others = sorted(set(files) - set(images))
        if images and others:
            logger.warning(
                "Skipping %d file(s) that are no images, first %s", len(others), others[0]
            )
        paths = sorted(Path(path).as_posix() for path in images + linked + unlisted)
        if not paths:
            raise DataError(
                f"dataset.root: the class folder {folder} holds no image"
                f" ({', '.join(IMG_EXTENSIONS)}). Add some or remove the folder."
            )
        rows += [(shards.printable(path), shards.printable(folder.name)) for path in paths]
    return pd.DataFrame(rows, columns=["path", "label"])


def _walk(folder: Path) -> tuple[list[str], list[str], list[str]]:
    """Return files, links to folders and folders that cannot be listed, but no hidden ones."""
    files: list[str] = []
    linked: list[str] = []
    unlisted: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=lambda e: unlisted.append(e.filename)):
        folders[:] = [name for name in folders if not _is_skipped(name)]
        linked += [path for name in folders if Path(path := f"{parent}/{name}").is_symlink()]
        files += [f"{parent}/{name}" for name in names if not name.startswith(".")]
    return files, linked, unlisted


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name == RESULTS
