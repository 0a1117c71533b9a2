"""A trained classifier on disk: safetensors and JSON, versioned."""

import copy
import dataclasses
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from kedro.io import AbstractVersionedDataset, Version

from thawline.networks.classifier import Classifier, load_classifier, save_classifier
from thawline.options import ModelOptions


class ClassifierDataset(AbstractVersionedDataset[Classifier, Classifier]):
    """Saves weights, architecture, class names and preprocessing together; loads a `Classifier`.

    kedro-datasets-experimental has a PyTorchDataset and a SafetensorsDataset; neither stores more
    than tensors.
    """

    # Of the session: they say what code may be imported. `hooks.ParametersHook` sets them.
    own: ClassVar[ModelOptions | None] = None

    def __init__(
        self, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Take the folder that the versions are kept in."""
        self.metadata = metadata
        self._last: tuple[Path, Classifier] | None = None
        super().__init__(PurePosixPath(filepath), version)

    def load(self) -> Classifier:
        """Return the classifier of the given, or else the latest, version.

        A run reads it from disk once; each load has a network of its own.
        """
        path = Path(self._get_load_path())
        if self._last is None or self._last[0] != path:
            self._last = (path, load_classifier(path, self.own))
        classifier = self._last[1]
        return dataclasses.replace(classifier, network=copy.deepcopy(classifier.network))

    def save(self, data: Classifier) -> None:
        """Write a new version."""
        save_classifier(data, Path(self._get_save_path()))

    def _release(self) -> None:
        self._last = None
        super()._release()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}

    def _exists(self) -> bool:
        return Path(self._get_load_path()).is_dir()


class ClassifiersDataset(ClassifierDataset):
    """Saves several classifiers by name, each in a folder as `ClassifierDataset` does."""

    def load(self) -> Any:
        """Return the classifiers of the wanted, or else the latest, version."""
        folders = sorted(Path(self._get_load_path()).iterdir())
        return {folder.name: load_classifier(folder, self.own) for folder in folders}

    def save(self, data: Any) -> None:
        """Write a new version of all."""
        folder = Path(self._get_save_path())
        for name, classifier in data.items():
            save_classifier(classifier, folder / name)
