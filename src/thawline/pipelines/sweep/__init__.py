"""From splits and a search space to the best parameters."""

from thawline.pipelines.sweep.pipeline import create_pipeline

__all__ = ["create_pipeline"]
