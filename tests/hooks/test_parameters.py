"""A recipe reaches every node and MLflow, from the command line."""

import sqlite3
import sys
from pathlib import Path

from conftest import kedro, run_command

SHOW_PARAMETERS = """
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
import sys
bootstrap_project(sys.argv[1])
given = {"recipe": "strong", "training": {"epochs": 3}, "registry": {"name": "mine"}}
with KedroSession.create(sys.argv[1], runtime_params=given) as session:
    catalog = session.load_context().catalog
parameters = catalog.load("parameters")
assert parameters.recipe == "strong" and parameters.augmentation.policy == "trivial"
for name, value in parameters:
    if name not in ("strategies", "recipes"):
        typed = type(value).model_validate if hasattr(value, "model_fields") else type(value)
        found = catalog.load(f"params:{name}")
        assert found == value or typed(found) == value, name
assert catalog.load("params:training.epochs") == 3
assert catalog.load("params:training.ema_decay") == 0.99
"""


def test_a_recipe_is_tracked_and_a_value_of_the_command_line_wins(project: Path) -> None:
    (project / "empty" / "ant").mkdir(parents=True)
    options = "dataset.root=empty,recipe=strong,training.epochs=3,augmentation.policy=rand"
    done = kedro(project, "run", f"--params={options}")
    assert done.returncode == 1 and "dataset.root: " in done.stderr
    with sqlite3.connect(project / "mlflow.db") as database:
        tracked = dict(database.execute("select key, value from params"))
    assert tracked["recipe"] == "strong" and tracked["training.ema_decay"] == "0.99"
    assert tracked["training.epochs"] == "3" and tracked["augmentation.policy"] == "rand"
    assert "training.lr" not in tracked  # null


def test_nodes_that_take_a_group_see_what_nodes_that_take_all_parameters_see(project: Path) -> None:
    run_command(project, sys.executable, "-c", SHOW_PARAMETERS, project)
