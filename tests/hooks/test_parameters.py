"""Parameters of the command line reach every node and MLflow."""

import sqlite3
import sys
from pathlib import Path

from conftest import kedro, run_command

SHOW_PARAMETERS = """
from kedro.framework.session import KedroSession
from kedro.framework.startup import bootstrap_project
import sys
bootstrap_project(sys.argv[1])
given = {"training": {"epochs": 3, "ema_decay": 0.99}, "registry": {"name": "mine"}}
with KedroSession.create(sys.argv[1], runtime_params=given) as session:
    catalog = session.load_context().catalog
parameters = catalog.load("parameters")
for name, value in parameters:
    if name != "strategies":
        typed = type(value).model_validate if hasattr(value, "model_fields") else type(value)
        found = catalog.load(f"params:{name}")
        assert found == value or typed(found) == value, name
assert catalog.load("params:training.epochs") == 3
assert catalog.load("params:training.ema_decay") == 0.99
"""


def test_values_of_the_command_line_are_tracked(project: Path) -> None:
    (project / "empty" / "ant").mkdir(parents=True)
    options = "training.ema_decay=0.99,training.epochs=3,augmentation.policy=rand"
    done = kedro(project, "run", f"--params=dataset.root=empty,{options}")
    assert done.returncode == 1 and "dataset.root: " in done.stderr
    with sqlite3.connect(project / "mlflow.db") as database:
        tracked = dict(database.execute("select key, value from params"))
    assert tracked["strategy"] == "head_only" and tracked["training.ema_decay"] == "0.99"
    assert tracked["training.epochs"] == "3" and tracked["augmentation.policy"] == "rand"
    assert "training.lr" not in tracked  # null


def test_nodes_that_take_a_group_see_what_nodes_that_take_all_parameters_see(project: Path) -> None:
    run_command(project, sys.executable, "-c", SHOW_PARAMETERS, project)
