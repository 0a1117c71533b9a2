"""`engine=ray`: workers that share each batch, and are replaced when they die."""

import re
import signal
import subprocess
from pathlib import Path

import pandas as pd
import psutil
import pytest
from safetensors.torch import load_file

from conftest import QUICK, copy_project, latest, log, report, run_kedro, start_kedro, tracked

pytest.importorskip("ray")
# A cluster takes half a minute to start, and a second one beside it would join it.
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]

# As with all that several machines compute: the order in which numbers are added up differs.
TOLERANCE = 1e-4
OF_TIME = ["seconds", "images_per_second"]  # what no two runs share
STEP = re.compile(r"Epoch (\d+), step (\d+): loss (\S+)")
# On CPUs, batch norm in training mode sees the images of its own worker.
FROZEN_NORM = """
strategies:
  frozen_norm:
    phases: [{trainable: all, epochs: 2, lr: 0.001, lr_decay: 0.5, batch_norm: eval}]
"""
UNTIL_TRAINED = ("run", "--pipeline=finetune", "--to-nodes=calibrate_classifier")


def history(project: Path) -> pd.DataFrame:
    return report(project, "history.csv").drop(columns=OF_TIME)


def steps(output: str) -> dict[tuple[str, str], float]:
    return {(epoch, step): float(loss) for epoch, step, loss in STEP.findall(output)}


def test_two_workers_train_the_run_that_one_process_does(
    finished_project: Path, photos: Path, project: Path
) -> None:
    params = f"--params=dataset.root={photos},{QUICK},engine.name=ray,engine.workers=2"
    said = run_kedro(project, *UNTIL_TRAINED, params)
    assert "each of 2 worker(s) computes its share" in said
    assert re.search(r"Phase 1: \d+ activations were read, 0 computed", log(project))
    pd.testing.assert_frame_equal(history(project), history(finished_project), atol=TOLERANCE)
    (state,) = project.glob("data/06_models/training_checkpoints/*")
    assert state.name.endswith(".finished.pt")


@pytest.mark.parametrize("strategy", ["head_only", "frozen_norm"])
def test_the_loss_after_each_step_is_that_of_one_worker(
    hymenoptera: Path, tmp_path: Path, strategy: str
) -> None:
    params = (
        f"--params=dataset.root={hymenoptera},strategy={strategy},training.epochs=2"
        ",training.precision=fp32,training.optimizer=sgd"  # AdamW multiplies rounding
    )
    found = []
    for engine in ("engine=local", "engine.name=ray,engine.workers=2"):
        project = copy_project(tmp_path / engine)
        (project / "conf" / "local" / "parameters.yml").write_text(FROZEN_NORM)
        process = start_kedro(project, *UNTIL_TRAINED, f"{params},{engine}")
        output, errors = process.communicate(timeout=1500)
        assert process.returncode == 0, output + errors
        found.append(steps(log(project)))
    first, second = found
    assert first.keys() == second.keys() and len(first) == 14
    largest = max(abs(first[step] - second[step]) for step in first)
    print(f"{strategy}: losses of {len(first)} steps differ by {largest:.1e} at most")
    assert largest <= TOLERANCE


def test_a_worker_that_is_killed_in_mid_epoch_is_replaced(photos: Path, tmp_path: Path) -> None:
    params = (
        f"--params=dataset.root={photos},{QUICK},training.epochs=6,strategy=full,training.batch_size=4"
        ",engine.name=ray,engine.workers=2"
    )
    undisturbed = copy_project(tmp_path / "undisturbed")
    run_kedro(undisturbed, *UNTIL_TRAINED, params)
    project = copy_project(tmp_path / "killed")
    process = start_kedro(project, "run", "--pipeline=finetune", "--verbose", params)
    output = log_until(process, "Epoch 3, step 4")
    workers = workers_of(process)
    assert len(workers) == 2, output
    workers[-1].kill()
    rest, errors = process.communicate(timeout=600)
    assert process.returncode == 0, output + rest + errors
    assert "A worker died: all were restarted" in rest
    assert "Resuming after epoch" in rest
    pd.testing.assert_frame_equal(history(project), history(undisturbed))
    folders = [latest(one, "06_models/classifier") for one in (project, undisturbed)]
    first, second = (load_file(folder / "model.safetensors") for folder in folders)
    assert all((first[name] == second[name]).all() for name in second)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_a_run_that_is_stopped_leaves_no_worker_and_can_be_resumed(
    photos: Path, project: Path, number: signal.Signals, code: int
) -> None:
    params = f"--params=dataset.root={photos},{QUICK},training.epochs=500,engine=ray"
    # What a shell runs in the background ignores Ctrl+C, and so does all that it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start_kedro(project, *UNTIL_TRAINED, params)
    log_until(process, "Epoch 2:")
    workers = workers_of(process)
    assert workers
    process.send_signal(number)
    said = "".join(process.communicate(timeout=60))
    assert process.returncode == code, said
    assert "training.resume=true" in said
    assert "Traceback" not in said
    gone, alive = psutil.wait_procs(workers, timeout=30)
    assert gone and not alive
    assert [*project.glob("data/06_models/training_checkpoints/*.pt")]
    _, (run,) = tracked(f"sqlite:///{project}/mlflow.db")
    assert run.info.status == "KILLED"


def log_until(process: subprocess.Popen[str], line: str) -> str:
    """Return the log up to a line."""
    output = ""
    assert process.stdout
    for text in process.stdout:
        output += text
        if line in text:
            break
    return output


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "RayTrainWorker" in " ".join(child.cmdline())]
