"""The notebooks run from top to bottom, and are committed without outputs."""

import json
from pathlib import Path

import pytest

from conftest import NOTEBOOKS, run_notebook


@pytest.mark.slow
def test_a_first_look_needs_nothing_but_the_project(project: Path) -> None:
    run_notebook("01_first_look", project)


@pytest.mark.slow
@pytest.mark.xdist_group("finished project")
def test_errors_are_looked_at_after_a_training(finished_project: Path) -> None:
    run_notebook("03_errors_and_attributions", finished_project)


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs(notebook: Path) -> None:
    cells = json.loads(notebook.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
