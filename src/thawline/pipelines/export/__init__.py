"""A model as a file for other programs."""

from thawline.pipelines.export.pipeline import create_pipeline as create_pipeline
