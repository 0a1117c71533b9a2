"""A classifier is read with the splits and predictions of its own run."""

from pathlib import Path

import pytest
from kedro.io import Version
from kedro_datasets.pandas import CSVDataset

from thawline.errors import DataError
from thawline.hooks.catalog import RunCatalog
from thawline.hooks.versions import VersionsHook
from thawline.pipelines.explain.pipeline import create_pipeline


def test_a_classifier_is_read_with_its_own_splits_and_predictions(tmp_path: Path) -> None:
    def dataset(name: str, version: str | None = None) -> CSVDataset:
        return CSVDataset(filepath=str(tmp_path / name), version=Version(version, None))

    def catalog(*versions: str) -> RunCatalog:
        names = ("classifier", "splits", "predictions")
        for name in names:
            for version in versions if name != "predictions" else versions[:2]:
                folder = tmp_path / name / version
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(f"version\n{version}\n")
        return RunCatalog({name: dataset(name) for name in names})

    pipeline, hook = create_pipeline(), VersionsHook()
    entries = catalog("1", "2")
    entries["classifier"] = dataset("classifier", "1")
    hook.before_pipeline_run({"load_versions": None}, pipeline, entries)
    for name in ("splits", "predictions"):
        assert entries.load(name)["version"].tolist() == [1]
    entries = catalog("1", "2", "3")  # the last run was interrupted
    with pytest.raises(DataError, match=r"predictions: there are none .* version 3"):
        hook.before_pipeline_run({"load_versions": None}, pipeline, entries)
