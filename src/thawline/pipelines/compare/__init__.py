"""Several strategies, each trained several times on the same splits, side by side."""

from thawline.pipelines.compare.pipeline import create_pipeline as create_pipeline
