"""What a run leaves in its catalog, even where it does not come to its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kedro.framework.hooks.manager import _create_hook_manager
from kedro.io import DataCatalog, DatasetError, Version
from kedro.pipeline import Pipeline, node
from kedro.runner import SequentialRunner
from kedro_datasets.json import JSONDataset

from thawline.hooks.hooks import AtomicSaveHook


def save(folder: Path, version: str | None, data: Any) -> None:
    """Save data as a run with the project's hooks does."""
    saves = Version(version, version) if version else None  # as ProjectHook has it
    catalog = DataCatalog({"entry": JSONDataset(filepath=f"{folder}/entry.json", version=saves)})
    hook, manager = AtomicSaveHook(), _create_hook_manager()
    manager.register(hook)
    pipeline = Pipeline([node(lambda: data, None, "entry")])
    arguments = {"run_params": {}, "pipeline": pipeline, "catalog": catalog}
    manager.hook.before_pipeline_run(**arguments)
    try:
        SequentialRunner().run(pipeline, catalog, manager)
    except DatasetError as error:
        manager.hook.on_pipeline_error(error=error, **arguments)
        raise


@pytest.mark.parametrize("versions", [("1", "2"), (None, None)], ids=["versioned", "plain"])
def test_what_could_not_be_saved_as_a_whole_takes_the_place_of_nothing(
    tmp_path: Path, versions: tuple[str | None, str | None]
) -> None:
    save(tmp_path, versions[0], {"n": 1})
    with pytest.raises(DatasetError, match="not JSON serializable"):
        save(tmp_path, versions[1], {"n": 2, "rest": object()})  # half of it is written by then
    version = Version(None, None) if versions[0] else None
    assert JSONDataset(filepath=f"{tmp_path}/entry.json", version=version).load() == {"n": 1}
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1
