"""The pipelines of the project, by name."""

from kedro.pipeline import Pipeline

from thawline.pipelines import (
    compare,
    data_preparation,
    explain,
    export,
    finetune,
    label_problems,
    predict,
    reporting,
    sweep,
)


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline; without a name, `kedro run` runs finetune."""
    preparation = data_preparation.create_pipeline()
    evaluation = finetune.create_evaluation()
    explanation = explain.create_pipeline()
    errors = reporting.create_error_analysis()
    model = preparation + finetune.create_transforms() + finetune.create_model()
    training = model + finetune.create_training() + evaluation
    problems = label_problems.create_pipeline()
    figures = finetune.create_views() + problems + finetune.create_summary() + errors + explanation
    # One box in kedro viz, which opens: the nodes and entries have the same names within it.
    report = Pipeline(
        figures + reporting.create_report(),
        namespace="report",
        prefix_datasets_with_namespace=False,
    )
    whole = training + report + finetune.create_registration()
    return {
        "__default__": whole,
        "finetune": whole,
        "data_preparation": preparation,
        "evaluate": evaluation + errors,
        "explain": explanation,
        "label_problems": model.to_nodes("build_model") + problems,
        "lr_find": model + finetune.create_lr_search(),
        "compare": compare.create_pipeline(),
        "predict": predict.create_pipeline(),
        "export": export.create_pipeline(),
        "sweep": preparation + sweep.create_pipeline(),
    }
