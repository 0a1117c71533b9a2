"""The catalog of a run: it saves files atomically and reads the versions that the run pins."""

import shutil
import uuid
from pathlib import Path
from typing import Any

from kedro.framework.context import CatalogCommandsMixin
from kedro.io import AbstractDataset, AbstractVersionedDataset, DataCatalog, DatasetError, Version

from thawline.data.atomic_write import sync


class RunCatalog(DataCatalog, CatalogCommandsMixin):
    """Kedro's catalog with atomic saves and pinned versions.

    Kedro's datasets write straight to their place: half a file, if the disk is full or the process
    is killed, would be the latest version. And Kedro reads the latest version of what the run has
    saved: another run in the same folder may have saved a later one since.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._pinned: dict[str, AbstractDataset | None] = {}
        super().__init__(*args, **kwargs)

    def pin(self, ds_name: str, version: str) -> None:
        """Read an entry in this version from now on, whatever later ones there are."""
        dataset: Any = super().get(ds_name)
        pinned = Version(version, dataset.resolve_save_version())
        self._pinned[ds_name] = super().get(ds_name, version=pinned)

    def get(
        self, key: str, fallback_to_runtime_pattern: bool = False, version: Version | None = None
    ) -> AbstractDataset | None:
        """Return the dataset of an entry, of its pinned version unless another one is given."""
        if version is None and key in self._pinned:
            return self._pinned[key]
        return super().get(key, fallback_to_runtime_pattern, version)

    def save(self, ds_name: str, data: Any) -> None:
        """Save an entry; local files are written to a folder beside their place, then moved there.

        Raises:
            DatasetError: if it cannot be saved; nothing is left of it then.
        """
        dataset = self[ds_name]
        config = self.config_resolver.resolve_pattern(ds_name)
        file = Path(config.get("filepath", "://"))
        if not isinstance(dataset, AbstractVersionedDataset) or "://" in str(file):
            super().save(ds_name, data)
            return
        folder = file.with_name(f".unfinished.{uuid.uuid4().hex}.{ds_name}")
        staged = config | {"filepath": str(folder / file.name), "versioned": False}
        catalog = DataCatalog.from_config(
            {ds_name: staged}, validation_enabled=self.validation_enabled
        )
        try:
            catalog.save(ds_name, data)
            self._move(folder, file, dataset.resolve_save_version())
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        dataset.release()  # it remembers which version was the latest
        if version := dataset.resolve_save_version():
            self.pin(ds_name, version)

    def _move(self, folder: Path, file: Path, version: str | None) -> None:
        for path in filter(Path.is_file, folder.rglob("*")):
            sync(path)
        if version is None:
            for path in folder.iterdir():
                path.replace(file.with_name(path.name))
            return
        file.mkdir(parents=True, exist_ok=True)
        try:
            folder.rename(file / version)
        except OSError as error:
            raise DatasetError(f"{file} cannot take version {version}: {error}") from error
