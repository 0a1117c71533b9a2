"""From splits and a search space to the best parameters."""

from thawline.pipelines.sweep.pipeline import create_pipeline as create_pipeline
