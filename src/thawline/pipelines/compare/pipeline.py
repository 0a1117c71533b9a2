"""Wiring of the comparison of strategies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from kedro.pipeline import Node, Pipeline

from thawline.options import CompareOptions
from thawline.pipelines import data_preparation, finetune
from thawline.pipelines.compare import nodes

SHARED = {"splits", "transforms", "activations", "training_checkpoints", "metric_logger"}
OWN_PARAMETERS = {"params:strategy", "params:seed"}
COLLECTED = [
    "params:strategy",
    "params:seed",
    "parameters",
    "classifier",
    "history",
    "metrics",
    "predictions",
]


class Training(NamedTuple):
    """One of the trainings that are compared."""

    strategy: str
    seed: int

    @property
    def namespace(self) -> str:
        """The namespace of its nodes and of what they yield."""
        return f"{self.strategy}.seed_{self.seed}"

    def parameters(self) -> dict[str, str | int]:
        """Return the catalog's entries that make it differ from the others."""
        return {
            f"params:{self.namespace}.strategy": self.strategy,
            f"params:{self.namespace}.seed": self.seed,
        }


def list_trainings(options: CompareOptions, seed: int) -> list[Training]:
    """Return the trainings of a comparison, strategy by strategy."""
    seeds = range(seed, seed + options.num_seeds)
    return [Training(strategy, number) for strategy in options.strategies for number in seeds]


def create_pipeline(trainings: Sequence[Training]) -> Pipeline:
    """Return the pipeline with an instance of finetune for every strategy and seed.

    They share splits, transforms and activations. An instance's `strategy` and `seed` are catalog
    entries of its namespace, `Training.parameters`.
    """
    instance = finetune.create_model() + finetune.create_training() + finetune.create_evaluation()
    collected = [*COLLECTED, *sorted(instance.outputs() - {*COLLECTED})]
    instance += Pipeline([Node(nodes.collect_result, collected, "result", name="collect_result")])
    shared = {name for name in instance.inputs() if name.startswith("params:")} - OWN_PARAMETERS
    instances = [
        Pipeline(
            instance,
            inputs=SHARED,
            parameters=shared,
            namespace=training.namespace,
        )
        for training in trainings
    ]
    conclusion = Node(
        nodes.compare_strategies,
        ["splits", "params:dataset", "params:model"]
        + [f"{training.namespace}.result" for training in trainings],
        ["comparison", "comparison_table", "comparison_figure", "comparison_report"],
        name="compare_strategies",
    )
    return Pipeline(
        [
            data_preparation.create_pipeline(),
            finetune.create_transforms(),
            *instances,
            Pipeline([conclusion]),
        ]
    )
