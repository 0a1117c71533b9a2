"""Kedro dataset classes that kedro-datasets lacks."""

from thawline.datasets.child_runs_dataset import ChildRunsDataset
from thawline.datasets.classifier_dataset import ClassifierDataset, ClassifiersDataset
from thawline.datasets.image_table_dataset import ImageParquetDataset, ImageTableDataset
from thawline.datasets.metric_logger_dataset import MetricLoggerDataset
from thawline.datasets.onnx_dataset import OnnxDataset
from thawline.datasets.picture_dataset import PictureDataset
from thawline.datasets.registry_dataset import RegistryDataset
from thawline.datasets.resource_dataset import PathDataset
from thawline.datasets.served_model_dataset import ServedModelDataset
from thawline.datasets.training_checkpoints_dataset import TrainingCheckpointsDataset

__all__ = [
    "ChildRunsDataset",
    "ClassifierDataset",
    "ClassifiersDataset",
    "ImageParquetDataset",
    "ImageTableDataset",
    "MetricLoggerDataset",
    "OnnxDataset",
    "PathDataset",
    "PictureDataset",
    "RegistryDataset",
    "ServedModelDataset",
    "TrainingCheckpointsDataset",
]
