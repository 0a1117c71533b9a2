"""Kedro dataset classes that kedro-datasets lacks."""

from thawline.datasets.image_table_dataset import (
    ImageParquetDataset,
    ImageTableDataset,
    SplitsDataset,
)
from thawline.datasets.model_datasets import ClassifierDataset, ClassifiersDataset, OnnxDataset
from thawline.datasets.report_datasets import PictureDataset, ReportDataset
from thawline.datasets.resource_datasets import (
    ChildRunsDataset,
    MetricLoggerDataset,
    PathDataset,
    RegistryDataset,
    TrainingCheckpointsDataset,
)
from thawline.datasets.served_model_dataset import ServedModelDataset

__all__ = [
    "ChildRunsDataset", "ClassifierDataset", "ClassifiersDataset", "ImageParquetDataset",
    "ImageTableDataset", "MetricLoggerDataset", "OnnxDataset", "PathDataset", "PictureDataset",
    "RegistryDataset", "ReportDataset", "ServedModelDataset", "SplitsDataset",
    "TrainingCheckpointsDataset",
]  # fmt: skip
