"""What the defaults reach on real photographs; minutes long, run with `pytest -m slow`."""

from pathlib import Path
from statistics import mean

import pytest

from conftest import report, run_kedro

pytestmark = pytest.mark.slow


def test_head_only_reaches_94_percent_on_ants_and_bees(project: Path, hymenoptera: Path) -> None:
    accuracies = []
    for seed in range(5):
        options = f"dataset.root={hymenoptera},strategy=head_only,seed={seed}"
        run_kedro(project, "run", "--pipeline=finetune", f"--params={options}")
        metrics = report(project, "metrics.json")
        assert metrics["test_images"] == 153
        accuracies.append(metrics["test_accuracy"])
    assert mean(accuracies) >= 0.94
