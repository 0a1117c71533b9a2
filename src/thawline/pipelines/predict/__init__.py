"""A registered model, or any other, over a folder of images."""

from thawline.pipelines.predict.pipeline import create_pipeline as create_pipeline
