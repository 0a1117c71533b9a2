"""Where a project keeps its own models, beside MLflow's registry."""

from pathlib import Path
from typing import Any

from thawline.datasets.resource_dataset import ResourceDataset
from thawline.serving.registry import ProjectFolders


class RegistryDataset(ResourceDataset[ProjectFolders]):
    """Loads the folders that `serving.find_model` and `serving.champion` work with."""

    def __init__(
        self, filepath: str, path: str, registrations: str, metadata: dict[str, Any] | None = None
    ) -> None:
        """Keep where things are. Kedro makes `filepath` and `path` absolute.

        Args:
            filepath: folder of the project's classifiers.
            path: base of relative paths.
            registrations: folder of the catalog entry `registration`, relative to `path`.
            metadata: of the entry.
        """
        super().__init__(metadata)
        self._folders = ProjectFolders(Path(filepath), Path(path, registrations), Path(path))

    def load(self) -> ProjectFolders:
        """Return the folders, as absolute paths."""
        return self._folders

    def _describe(self) -> dict[str, Any]:
        return {name: str(folder) for name, folder in self._folders._asdict().items()}
