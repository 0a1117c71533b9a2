"""Wiring of fine-tuning and evaluation."""

from kedro.pipeline import Pipeline

from thawline.pipelines import make_node
from thawline.pipelines.finetune import nodes

UNTRAINED = ["parameters", "network", "splits", "transforms", "activations"]
DATA = ["splits", "chosen_transforms", "activations"]
CHOICE = [
    "chosen_strategy", "strategy_choice", "candidates", "candidates_figure", "chosen_network",
    "chosen_transforms",
]  # fmt: skip
FROZEN = ["frozen_network", "freeze_report"]
TRAINED = [
    "trained_classifier", "last_classifier", "history", "freeze_contract", "learning_curves",
    "stage_contributions",
]  # fmt: skip
EVALUATED = ["metrics", "per_class_metrics", "predictions", "confusion_matrix"]


def create_model() -> Pipeline:
    """Return the pipeline from splits to a network and the strategy to train it by."""
    prepared = ["parameters", "splits", "transforms"]
    return Pipeline(
        [
            make_node(nodes.build_transforms, "parameters", "transforms"),
            make_node(nodes.build_model, prepared, ["network", "load_report"]),
            make_node(nodes.choose_strategy, [*UNTRAINED, "training_checkpoints"], CHOICE),
        ]
    )


def create_lr_search() -> Pipeline:
    """Return the pipeline from a network to the learning rate that suits its strategy."""
    outputs = ["lr_range_test", "suggested_lr", "lr_curve"]
    return Pipeline([make_node(nodes.find_lr, UNTRAINED, outputs)])


def create_training() -> Pipeline:
    """Return the pipeline from a network to a classifier and its metrics on the test split."""
    frozen = ["frozen_network", "chosen_strategy", *DATA, "training_checkpoints", "metric_logger"]
    calibrated = ["parameters", "trained_classifier", "splits", "activations"]
    trained = ["classifier", "splits", "params:evaluation", "params:training"]
    return Pipeline(
        [
            make_node(nodes.freeze_layers, ["chosen_network", "chosen_strategy"], FROZEN),
            make_node(nodes.train_model, frozen, TRAINED),
            make_node(nodes.calibrate_classifier, calibrated, "classifier"),
            make_node(nodes.evaluate_model, trained, EVALUATED),
        ]
    )


def create_summary() -> Pipeline:
    """Return the pipeline to what the network saw in training, and what became of it."""
    drawn = ["splits", "chosen_transforms", "params:augmentation", "params:seed"]
    stages = ["chosen_network", "chosen_strategy", "history", "chosen_transforms"]
    trained = ["parameters", "chosen_network", "classifier", *DATA]
    change = ["weight_change", "weight_change_figure"]
    return Pipeline(
        [
            make_node(nodes.draw_views, drawn, "training_views"),
            make_node(nodes.describe_stages, stages, ["stage_table", "stage_figure"]),
            make_node(nodes.measure_weight_change, trained, change),
        ]
    )


def create_registration() -> Pipeline:
    """Return the pipeline from an evaluated classifier to its version in the registry."""
    evaluated = ["predictions", "classifier", "registry", "applied_corrections"]
    inputs = ["parameters", "served_model", *evaluated]
    return Pipeline(
        [
            make_node(nodes.package_model, ["classifier", "splits"], "served_model"),
            make_node(nodes.register_model, inputs, "registration"),
        ]
    )
