"""Kedro dataset classes that kedro-datasets lacks."""

from thawline.datasets.activation_store_dataset import ActivationCacheDataset
from thawline.datasets.child_runs_dataset import ChildRunsDataset
from thawline.datasets.classifier_dataset import ClassifierDataset
from thawline.datasets.image_files_dataset import ImageFilesDataset
from thawline.datasets.image_folder_dataset import ImageFolderDataset
from thawline.datasets.image_table_dataset import ImageParquetDataset, ImageTableDataset
from thawline.datasets.live_metrics_dataset import MetricLoggerDataset
from thawline.datasets.onnx_dataset import OnnxDataset
from thawline.datasets.picture_dataset import PictureDataset
from thawline.datasets.raw_images_dataset import RawImagesDataset
from thawline.datasets.registry_dataset import RegistryDataset
from thawline.datasets.screening_cache_dataset import ScreeningCacheDataset
from thawline.datasets.served_model_dataset import ServedModelDataset
from thawline.datasets.sweep_storage_dataset import SweepStorageDataset
from thawline.datasets.training_state_dataset import TrainingCheckpointsDataset

__all__ = [
    "ActivationCacheDataset",
    "ChildRunsDataset",
    "ClassifierDataset",
    "ImageFilesDataset",
    "ImageFolderDataset",
    "ImageParquetDataset",
    "ImageTableDataset",
    "MetricLoggerDataset",
    "OnnxDataset",
    "PictureDataset",
    "RawImagesDataset",
    "RegistryDataset",
    "ScreeningCacheDataset",
    "ServedModelDataset",
    "SweepStorageDataset",
    "TrainingCheckpointsDataset",
]
