"""Which images are probably labeled wrongly, in two splits at once, or out of place."""

from thawline.pipelines.label_problems.pipeline import create_pipeline as create_pipeline
