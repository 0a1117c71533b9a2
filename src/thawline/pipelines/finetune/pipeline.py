"""Wiring of fine-tuning and evaluation."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.finetune import nodes
from thawline.reports.figures.data import training_views


def create_transforms() -> Pipeline:
    """Return the pipeline from parameters to transforms."""
    return Pipeline(
        [Node(nodes.build_transforms, "parameters", "transforms", name="build_transforms")]
    )


def create_views() -> Pipeline:
    """Return the pipeline from splits to a picture of what the network sees in training."""
    return Pipeline(
        [
            Node(
                training_views,
                ["splits", "transforms", "params:augmentation", "params:seed"],
                "training_views",
                name="draw_views",
            )
        ]
    )


def create_model() -> Pipeline:
    """Return the pipeline from splits to a network and the strategy to train it by."""
    return Pipeline(
        [
            Node(
                nodes.build_model,
                ["parameters", "splits", "transforms"],
                ["network", "load_report"],
                name="build_model",
            ),
            Node(
                nodes.choose_strategy,
                ["parameters", "network", "splits", "transforms", "activations"],
                ["chosen_strategy", "strategy_choice", "stage_probes", "stage_probes_figure"],
                name="choose_strategy",
            ),
        ]
    )


def create_lr_search() -> Pipeline:
    """Return the pipeline from a network to the learning rate that suits its first phase."""
    return Pipeline(
        [
            Node(
                nodes.find_lr,
                [
                    "parameters",
                    "network",
                    "chosen_strategy",
                    "splits",
                    "transforms",
                    "activations",
                ],
                ["lr_range_test", "suggested_lr", "lr_curve"],
                name="find_lr",
            )
        ]
    )


def create_training() -> Pipeline:
    """Return the pipeline from a network to a classifier."""
    return Pipeline(
        [
            Node(
                nodes.freeze_layers,
                ["network", "chosen_strategy"],
                ["frozen_network", "freeze_report"],
                name="freeze_layers",
            ),
            Node(
                nodes.train_model,
                [
                    "parameters",
                    "frozen_network",
                    "chosen_strategy",
                    "splits",
                    "transforms",
                    "activations",
                    "training_checkpoints",
                    "metric_logger",
                ],
                ["classifier", "last_classifier", "history", "freeze_contract", "learning_curves"],
                name="train_model",
            ),
        ]
    )


def create_summary() -> Pipeline:
    """Return the pipeline from a network, before and after training, to what became of it."""
    return Pipeline(
        [
            Node(
                nodes.describe_stages,
                ["network", "chosen_strategy", "history", "transforms"],
                ["stage_table", "stage_figure"],
                name="describe_stages",
            ),
            Node(
                nodes.measure_weight_change,
                ["parameters", "network", "classifier", "splits", "transforms", "activations"],
                ["weight_change", "weight_change_figure"],
                name="measure_weight_change",
            ),
        ]
    )


def create_evaluation() -> Pipeline:
    """Return the pipeline from a classifier and its splits to figures on the test split."""
    return Pipeline(
        [
            Node(
                nodes.evaluate_model,
                ["classifier", "splits", "params:evaluation", "params:training"],
                ["metrics", "per_class_metrics", "predictions", "confusion_matrix"],
                name="evaluate_model",
            )
        ]
    )


def create_registration() -> Pipeline:
    """Return the pipeline from an evaluated classifier to its version in the registry."""
    return Pipeline(
        [
            Node(
                nodes.package_model, ["classifier", "splits"], "served_model", name="package_model"
            ),
            Node(
                nodes.register_model,
                ["parameters", "served_model", "predictions", "classifier", "registry"],
                "registration",
                name="register_model",
            ),
        ]
    )
