"""What in an image speaks for the class that a classifier sees in it."""

from thawline.pipelines.explain.pipeline import create_pipeline as create_pipeline
