"""Models on disk: folders of safetensors and JSON, or of ONNX and JSON, versioned."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, ClassVar

from kedro.io import AbstractVersionedDataset, Version
from kedro_datasets._typing import JSONPreview

from thawline.networks.files import DESCRIPTION_FILE
from thawline.options import ModelOptions

if TYPE_CHECKING:
    from thawline.networks.classifier import Classifier
    from thawline.serving.onnx import OnnxModel


class FolderDataset(AbstractVersionedDataset[Any, Any]):
    """A dataset whose versions are folders."""

    def __init__(
        self, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        self.metadata = metadata
        super().__init__(PurePosixPath(filepath), version)

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_dir()


class ClassifierDataset(FolderDataset):
    """Saves weights, architecture, class names and preprocessing together; loads a `Classifier`.

    kedro-datasets-experimental has a PyTorchDataset and a SafetensorsDataset; neither stores more
    than tensors.
    """

    # Of the session: they say what code may be imported. `hooks.ParametersHook` sets them.
    own: ClassVar[ModelOptions | None] = None

    _last: tuple[Path, Classifier] | None = None

    def load(self) -> Classifier:
        """Return the classifier of the given, or else the latest, version.

        A run reads it from disk once; each load has a network of its own.
        """
        from thawline.networks.classifier import load_classifier

        path = Path(self._get_load_path())
        if self._last is None or self._last[0] != path:
            self._last = (path, load_classifier(path, self.own))
        classifier = self._last[1]
        return dataclasses.replace(classifier, network=copy.deepcopy(classifier.network))

    def save(self, data: Classifier) -> None:
        """Write a new version."""
        from thawline.networks.classifier import save_classifier

        save_classifier(data, Path(self._get_save_path()))

    def preview(self) -> JSONPreview:
        """Return classes, preprocessing, network and training, for kedro viz."""
        return JSONPreview((Path(self._get_load_path()) / DESCRIPTION_FILE).read_text("utf-8"))

    def _release(self) -> None:
        self._last = None
        super()._release()


class ClassifiersDataset(FolderDataset):
    """Saves several classifiers by name, each in a folder as `ClassifierDataset` does."""

    def load(self) -> dict[str, Classifier]:
        """Return the classifiers of the wanted, or else the latest, version."""
        from thawline.networks.classifier import load_classifier

        folders = sorted(Path(self._get_load_path()).iterdir())
        return {each.name: load_classifier(each, ClassifierDataset.own) for each in folders}

    def save(self, data: dict[str, Classifier]) -> None:
        """Write a new version of all."""
        from thawline.networks.classifier import save_classifier

        folder = Path(self._get_save_path())
        for name, classifier in data.items():
            save_classifier(classifier, folder / name)


class OnnxDataset(FolderDataset):
    """Saves and loads model.onnx, and model.json which says how to use it."""

    def load(self) -> OnnxModel:
        """Return the given, or else the latest, version."""
        folder = Path(self._get_load_path())
        description = json.loads((folder / "model.json").read_text("utf-8"))
        return (folder / "model.onnx").read_bytes(), description

    def save(self, data: OnnxModel) -> None:
        """Write a new version."""
        folder, (model, description) = Path(self._get_save_path()), data
        folder.mkdir(parents=True)
        (folder / "model.onnx").write_bytes(model)
        text = json.dumps(description, indent=2, ensure_ascii=False)
        (folder / "model.json").write_text(text, "utf-8")
