"""Several strategies, each trained several times on the same splits, side by side."""

from thawline.pipelines.compare.pipeline import Training, create_pipeline, list_trainings

__all__ = ["Training", "create_pipeline", "list_trainings"]
