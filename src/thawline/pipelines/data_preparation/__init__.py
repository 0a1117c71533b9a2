"""From image files to a table of splits."""

from thawline.pipelines.data_preparation.pipeline import create_pipeline as create_pipeline
