"""Types of what nodes exchange, without an import of what defines them.

Kedro reads the type hints of all nodes before it runs the first: with these, a run begins without
PyTorch. A node imports what it needs itself.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from torch.nn import Module as Network

    from thawline.data.transforms import Transforms
    from thawline.datasets.resource_datasets import OpenRun
    from thawline.datasets.served_model_dataset import ServedModel
    from thawline.evaluation.comparison import Trainings
    from thawline.networks.classifier import Classifier
    from thawline.serving.onnx import OnnxModel
    from thawline.serving.registry import ProjectFolders
    from thawline.sweep.auto import Choice
    from thawline.training.progress import OnEpoch, TrainingResult
    from thawline.training.state import TrainingCheckpoints
else:
    FrozenTrial = Network = Transforms = OpenRun = ServedModel = Trainings = Classifier = Any
    OnnxModel = ProjectFolders = Choice = OnEpoch = TrainingCheckpoints = TrainingResult = Any

__all__ = [
    "Choice", "Classifier", "FrozenTrial", "Network", "OnEpoch", "OnnxModel", "OpenRun",
    "ProjectFolders", "ServedModel", "TrainingCheckpoints", "TrainingResult", "Trainings",
    "Transforms",
]  # fmt: skip
