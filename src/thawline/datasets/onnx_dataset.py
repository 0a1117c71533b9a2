"""A network as an ONNX file, with a description of how to use it."""

import json
from pathlib import Path, PurePosixPath
from typing import Any

from kedro.io import AbstractVersionedDataset, Version

from thawline.data.atomic_write import write_atomic
from thawline.serving.onnx import OnnxModel

MODEL_FILE = "model.onnx"
DESCRIPTION_FILE = "model.json"


class OnnxDataset(AbstractVersionedDataset[OnnxModel, OnnxModel]):
    """Saves and loads model.onnx and model.json in one folder."""

    def __init__(
        self, filepath: str, version: Version | None = None, metadata: dict[str, Any] | None = None
    ) -> None:
        """Set the folder of all versions."""
        self.metadata = metadata
        super().__init__(PurePosixPath(filepath), version)

    def load(self) -> OnnxModel:
        """Return the given, or else the latest, version."""
        folder = Path(self._get_load_path())
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        return OnnxModel((folder / MODEL_FILE).read_bytes(), description)

    def save(self, data: OnnxModel) -> None:
        """Write a new version, the description last."""
        folder = Path(self._get_save_path())
        folder.mkdir(parents=True)
        text = json.dumps(data.description, indent=2, ensure_ascii=False)
        write_atomic(folder / MODEL_FILE, lambda file: file.write_bytes(data.model))
        write_atomic(folder / DESCRIPTION_FILE, lambda file: file.write_text(text, "utf-8"))

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "version": self._version}

    def _exists(self) -> bool:
        return (Path(self._get_load_path()) / DESCRIPTION_FILE).is_file()
