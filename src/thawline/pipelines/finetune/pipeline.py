"""Wiring of fine-tuning and evaluation."""

from kedro.pipeline import Node, Pipeline

from thawline.pipelines.finetune import nodes
from thawline.reports.figures.data import training_views

DATA = ["splits", "transforms", "activations"]


def create_model() -> Pipeline:
    """Return the pipeline from splits to a network and the strategy to train it by."""
    build = Node(
        nodes.build_model,
        ["parameters", "splits", "transforms"],
        ["network", "load_report"],
        name="build_model",
    )
    choose = Node(
        nodes.choose_strategy,
        ["parameters", "network", *DATA],
        ["chosen_strategy", "strategy_choice", "stage_probes", "stage_probes_figure"],
        name="choose_strategy",
    )
    transforms = Node(nodes.build_transforms, "parameters", "transforms", name="build_transforms")
    return Pipeline([transforms, build, choose])


def create_lr_search() -> Pipeline:
    """Return the pipeline from a network to the learning rate that suits its first phase."""
    inputs = ["parameters", "network", "chosen_strategy", *DATA]
    return Pipeline(
        [Node(nodes.find_lr, inputs, ["lr_range_test", "suggested_lr", "lr_curve"], name="find_lr")]
    )


def create_training() -> Pipeline:
    """Return the pipeline from a network to a classifier and its metrics on the test split."""
    freeze = Node(
        nodes.freeze_layers,
        ["network", "chosen_strategy"],
        ["frozen_network", "freeze_report"],
        name="freeze_layers",
    )
    state = ["training_checkpoints", "metric_logger"]
    train = Node(
        nodes.train_model,
        ["parameters", "frozen_network", "chosen_strategy", *DATA, *state],
        ["classifier", "last_classifier", "history", "freeze_contract", "learning_curves"],
        name="train_model",
    )
    evaluate = Node(
        nodes.evaluate_model,
        ["classifier", "splits", "params:evaluation", "params:training"],
        ["metrics", "per_class_metrics", "predictions", "confusion_matrix"],
        name="evaluate_model",
    )
    return Pipeline([freeze, train, evaluate])


def create_summary() -> Pipeline:
    """Return the pipeline to what the network saw in training, and what became of it."""
    views = Node(
        training_views,
        ["splits", "transforms", "params:augmentation", "params:seed"],
        "training_views",
        name="draw_views",
    )
    stages = Node(
        nodes.describe_stages,
        ["network", "chosen_strategy", "history", "transforms"],
        ["stage_table", "stage_figure"],
        name="describe_stages",
    )
    change = Node(
        nodes.measure_weight_change,
        ["parameters", "network", "classifier", *DATA],
        ["weight_change", "weight_change_figure"],
        name="measure_weight_change",
    )
    return Pipeline([views, stages, change])


def create_registration() -> Pipeline:
    """Return the pipeline from an evaluated classifier to its version in the registry."""
    inputs = ["parameters", "served_model", "predictions", "classifier", "registry"]
    return Pipeline(
        [
            Node(
                nodes.package_model, ["classifier", "splits"], "served_model", name="package_model"
            ),
            Node(nodes.register_model, inputs, "registration", name="register_model"),
        ]
    )
