"""The pipelines of the project, by name."""

from kedro.pipeline import Pipeline

from thawline.pipelines.compare import pipeline as compare
from thawline.pipelines.data_preparation import pipeline as data_preparation
from thawline.pipelines.drift import pipeline as drift
from thawline.pipelines.explain import pipeline as explain
from thawline.pipelines.export import pipeline as export
from thawline.pipelines.finetune import pipeline as finetune
from thawline.pipelines.label_problems import pipeline as label_problems
from thawline.pipelines.predict import pipeline as predict
from thawline.pipelines.reporting import pipeline as reporting
from thawline.pipelines.review import pipeline as review
from thawline.pipelines.sweep import pipeline as sweep


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline; without a name, `kedro run` runs finetune."""
    preparation = data_preparation.create_pipeline()
    explanation = explain.create_pipeline()
    errors = reporting.create_error_analysis()
    model = preparation + finetune.create_model()
    training = finetune.create_training()
    problems = label_problems.create_pipeline()
    # One box in kedro viz, which opens: the nodes and entries have the same names within it.
    chosen = {"network": "chosen_network", "transforms": "chosen_transforms"}  # as trained on
    report = Pipeline(
        finetune.create_summary()
        + Pipeline(problems, inputs=chosen)
        + errors
        + explanation
        + reporting.create_report(),
        namespace="report",
        prefix_datasets_with_namespace=False,
    )
    whole = model + training + report + finetune.create_registration()
    return {
        "__default__": whole,
        "finetune": whole,
        "data_preparation": preparation,
        "evaluate": training.only_nodes("evaluate_model") + errors,
        "explain": explanation,
        "label_problems": model.to_nodes("build_model") + problems,
        "lr_find": model.to_nodes("build_model") + finetune.create_lr_search(),
        "compare": preparation + model.only_nodes("build_transforms") + compare.create_pipeline(),
        "drift": drift.create_pipeline(),
        "review": review.create_pipeline(),
        "predict": predict.create_pipeline(),
        "export": export.create_pipeline(),
        "sweep": preparation + sweep.create_pipeline(),
    }
