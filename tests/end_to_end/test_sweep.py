"""`kedro run --pipeline=sweep` finds parameters that `kedro run --env=best` repeats."""

import shutil
from pathlib import Path

import pytest
import yaml

from conftest import QUICK, kedro, report, run_kedro, tracked

SPACE = """
sweep:
  space:
    strategy: { type: categorical, choices: [head_only, freeze_to_layer3] }
    model.head_dropout: null
"""


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, finished_project: Path, photos: Path) -> Path:
    """Return a project in which a sweep of three trials was run."""
    project = tmp_path_factory.mktemp("swept") / "project"
    shutil.copytree(finished_project, project)
    (project / "conf/local/parameters_sweep.yml").write_text(SPACE)
    options = f"dataset.root={photos},training.clip_norm=1,sweep.trials=3,{QUICK}"
    said = run_kedro(project, "run", "--pipeline=sweep", f"--params={options}")
    assert "3 of 3 trials; best is trial" in " ".join(said.split())
    return project


@pytest.mark.xdist_group("finished project")
def test_the_best_trial_is_repeated_exactly(swept: Path) -> None:
    trials = report(swept, "sweep_trials.csv")
    assert trials["trial"].tolist() == [0, 1, 2]
    complete = trials[trials["state"] == "complete"]
    best = complete.sort_values(["val_accuracy", "val_loss"], ascending=[False, True]).iloc[0]
    written = yaml.safe_load((swept / "conf/best/parameters.yml").read_text())
    assert written["training"]["lr"] == best["training.lr"]
    assert written["training"]["clip_norm"] == 1  # came by --params
    (swept / "conf/local/parameters_sweep.yml").unlink()
    run_kedro(swept, "run", "--env=best", "--to-nodes=calibrate_classifier")
    history = report(swept, "history.csv")
    repeated = history.iloc[int(best["best_epoch"]) - 1]
    assert repeated["val_accuracy"] == best["val_accuracy"]
    assert repeated["val_loss"] == best["val_loss"]


@pytest.mark.xdist_group("finished project")
def test_every_trial_is_a_child_run_and_the_figures_are_artifacts(swept: Path) -> None:
    client, runs = tracked(f"sqlite:///{swept}/mlflow.db")
    parent = next(run for run in runs if run.info.run_name.endswith(" · sweep"))
    trials = report(swept, "sweep_trials.csv")
    children = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    for child, row in zip(reversed(children), trials.to_dict("records"), strict=True):
        assert child.info.run_name == f"trial {row['trial']}"
        assert child.info.status == "FINISHED"
        assert child.data.tags["state"] == row["state"]
        assert child.data.tags["strategy"] == row["strategy"]
        assert child.data.tags["study"].startswith("sweep-")
        assert float(child.data.params["training.lr"]) == row["training.lr"]
        assert "model.head_dropout" not in child.data.params
        curve = client.get_metric_history(child.info.run_id, "val/loss")
        assert [point.step for point in curve] == [*range(1, row["epochs"] + 1)]
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"sweep_trials.csv", "optimization_history.json", "parallel_coordinates.json"} <= names
    assert "best_parameters.yml" in names


def test_a_space_that_cannot_be_searched_is_refused_before_any_image_is_read(project: Path) -> None:
    (project / "conf/local/parameters_sweep.yml").write_text(
        "sweep: { space: { training.lrr: { type: float, low: 0.1, high: 1 } } }"
    )
    secret = "sweep.storage=postgresql://user:pa55word@host/name"
    done = kedro(project, "run", "--pipeline=sweep", f"--params=sweep.trials=2,{secret}")
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said
    assert "training.lrr: unknown; did you mean 'lr'" in said
    assert b"pa55word" not in (project / "mlflow.db").read_bytes()
    assert not (project / "data/02_intermediate").exists()
