"""Where the state of an interrupted training is kept."""

from pathlib import Path
from typing import Any

from thawline.datasets.resource_dataset import ResourceDataset
from thawline.training.state import TrainingCheckpoints


class TrainingCheckpointsDataset(ResourceDataset[TrainingCheckpoints]):
    """Loads the states in a folder, which are forgotten when the whole run has ended well."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        """Take the folder."""
        super().__init__(metadata)
        self._filepath, self._states = filepath, TrainingCheckpoints(Path(filepath))

    def load(self) -> TrainingCheckpoints:
        """Return the states in the folder."""
        return self._states

    def forget(self) -> None:
        """Remove the states of this run."""
        self._states.forget()

    def _exists(self) -> bool:
        return Path(self._filepath).is_dir()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": self._filepath}
