"""The pipelines of the project, by name."""

from kedro.pipeline import Pipeline

from thawline.pipelines import data_preparation, finetune, sweep


def register_pipelines() -> dict[str, Pipeline]:
    """Return every pipeline; without a name, `kedro run` runs finetune."""
    preparation = data_preparation.create_pipeline()
    evaluation = finetune.create_evaluation()
    model = preparation + finetune.create_model()
    whole = model + finetune.create_training() + evaluation
    return {
        "__default__": whole,
        "finetune": whole,
        "data_preparation": preparation,
        "evaluate": evaluation,
        "lr_find": model + finetune.create_lr_search(),
        "sweep": preparation + sweep.create_pipeline(),
    }
