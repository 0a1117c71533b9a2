"""Workers of a Ray cluster return what a training in this process does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from helpers.training import FROZEN_NORM, HEAD, network_of, parameters, same, transforms
from thawline.errors import DataError, ParameterError
from thawline.options import EngineOptions
from thawline.thaw.cache import ActivationCache
from thawline.training import loop, ray_cluster, ray_engine
from thawline.training.ray_cluster import Arguments
from thawline.training.setup import prepare
from thawline.training.state import TrainingCheckpoints

ray = pytest.importorskip("ray")
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.slow]  # one cluster for all

ENGINE = EngineOptions(name="ray", workers=2, gpus_per_worker=0)
PHASES = [HEAD, FROZEN_NORM]  # batch norm that is not frozen sees shares on CPUs


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, num_gpus=1, log_to_driver=False)  # a GPU is claimed, and may not exist
    yield
    ray.shutdown()


def arguments_of(splits: pd.DataFrame, folder: Path, gpus_per_worker: float = 0) -> Arguments:
    """Return a training without dropout, of which every worker draws its own."""
    engine = ENGINE.model_copy(update={"gpus_per_worker": gpus_per_worker})
    chosen = parameters(views=2, batch_size=10, optimizer="sgd")
    chosen = chosen.model_copy(update={"engine": engine})
    cache = ActivationCache(folder / "store", 1)
    return chosen, network_of("timm/resnet10t"), splits, transforms(), cache


@pytest.mark.parametrize("gpus_per_worker", [0, 0.5])
def test_two_workers_return_what_one_process_does(
    gpus_per_worker: float, splits: pd.DataFrame, tmp_path: Path
) -> None:
    arguments = arguments_of(splits, tmp_path / "ray", gpus_per_worker)
    before = {name: tensor.clone() for name, tensor in arguments[1].state_dict().items()}
    rows: list[dict[str, Any]] = []
    states = TrainingCheckpoints(tmp_path / "states")
    found = ray_engine.train(arguments, PHASES, states, lambda row, _: rows.append(row))
    alone = loop.train(prepare(*arguments_of(splits, tmp_path / "alone")), PHASES)

    for name, tensor in alone.last.items():
        torch.testing.assert_close(found.last[name], tensor, atol=1e-4, rtol=1e-4)
    of_time = ["seconds", "images_per_second"]
    first, second = (one.history.drop(columns=of_time) for one in (found, alone))
    pd.testing.assert_frame_equal(first, second, atol=1e-4)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert found.freeze_contract == alone.freeze_contract
    # What this process was given stays as it is, and nothing is left but what is to be resumed.
    assert same(before, arguments[1].state_dict())
    assert {path.suffix for path in states.folder.iterdir()} == {".pt"}
    states.finish()
    assert [path.suffixes for path in states.folder.iterdir()] == [[".finished", ".pt"]]


def test_more_workers_than_there_are_processors_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"engine\.workers: 1000 with a CPU"):
        ray_cluster.divide(ENGINE.model_copy(update={"workers": 1000}), "auto")


def test_an_image_that_has_vanished_is_named(splits: pd.DataFrame, tmp_path: Path) -> None:
    gone = splits.assign(path=splits["path"].where(splits.index != 3, str(tmp_path / "gone.jpg")))
    with pytest.raises(DataError, match=r"gone\.jpg: this image was there when the run began"):
        ray_engine.train(arguments_of(gone, tmp_path), PHASES)
