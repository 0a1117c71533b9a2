"""Fine-tuning of pretrained image classifiers as reproducible Kedro pipelines."""

__version__ = "0.1.0"
