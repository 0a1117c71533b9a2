"""A registered model, or any other, over a folder of images."""

from thawline.pipelines.predict.pipeline import create_pipeline

__all__ = ["create_pipeline"]
