"""A classifier as an MLflow model that predicts images from paths or bytes."""

from __future__ import annotations

import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from kedro.io import AbstractDataset
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

if TYPE_CHECKING:
    from thawline.networks.classifier import Classifier

logger = logging.getLogger(__name__)

PACKAGE = Path(__file__).parents[1]
# What serving.mlflow_model imports; the packages of the pipelines are not needed for serving.
REQUIREMENTS = (
    "joblib", "numpy", "pandas", "pillow", "pydantic", "rich", "safetensors", "timm", "torch",
    "torchvision",
)  # fmt: skip
# An unnamed column takes a list of paths or bytes, or a data frame of either; over HTTP, bytes are
# base64.
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec(DataType.binary)]),
    outputs=Schema([ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability")]),
    params=ParamSchema([ParamSpec("top_k", DataType.long, 1)]),
)


ServedModel = tuple["Classifier", list[bytes]]  # and a few image files as the input example


class ServedModelDataset(AbstractDataset[ServedModel, str | None]):
    """Logs the model to the active MLflow run; loads its URI."""

    def __init__(self, name: str, metadata: dict[str, Any] | None = None) -> None:
        self._name, self.metadata = name, metadata
        self._uri: str | None = None

    def save(self, data: ServedModel) -> None:
        """Log the model with its signature, an input example and its class names.

        Without an active run, warn and log nothing.
        """
        from thawline.networks.classifier import save_classifier
        from thawline.serving.registry import CLASSIFIER
        from thawline.serving.requests import RequestLimits

        if not mlflow.active_run():
            logger.warning("No MLflow run is active: the model is kept in the catalog only.")
            return
        classifier, examples = data
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, CLASSIFIER)
            save_classifier(classifier, folder)
            info = mlflow.pyfunc.log_model(
                name=self._name,
                python_model=str(PACKAGE / "serving" / "mlflow_model.py"),
                artifacts={CLASSIFIER: str(folder)},
                code_paths=[str(PACKAGE)],
                model_config=RequestLimits().model_dump(),  # so that a server may change them
                signature=SIGNATURE,
                input_example=pd.DataFrame({0: examples}),
                pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
                metadata={"class_names": list(classifier.class_names)},
            )
        self._uri = info.model_uri

    def load(self) -> str | None:
        """Return the URI `models:/…` of the model that this session logged, None if none."""
        return self._uri

    def _exists(self) -> bool:
        return self._uri is not None

    def _describe(self) -> dict[str, Any]:
        return {"name": self._name, "uri": self._uri}
