"""The MLflow model, as code: MLflow runs this file where a classifier is served."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from thawline.errors import DataError
from thawline.networks.classifier import RequestLimits, check_request, classify, load_classifier
from thawline.options import ModelOptions

# MLflow sets it where it answers requests, to "true".
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


class ServedClassifier(PythonModel):
    """Answers with label and probability for image files, given as their bytes or as paths.

    Paths are for a program that has loaded the model; who asks a server must not learn what files
    there are on it.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the classifier once, when the model is loaded."""
        # MLflow runs this file out of the same artifact: whoever loads it trusts its code already.
        trusting = ModelOptions(trust_code=True)
        self.classifier = load_classifier(Path(context.artifacts["classifier"]), trusting)
        self.limits = RequestLimits(**(context.model_config or {}))

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        """Return a data frame with the columns label and probability, a row an image.

        Where `params` asks for a `top_k` above 1, label_2, probability_2 and so on follow.

        Raises:
            MlflowException: when an image cannot be read, or there is more of it than the limits
                of the model allow; over HTTP the answer is 400.
        """
        top_k = (params or {}).get("top_k", 1)
        if top_k < 1:
            raise MlflowException.invalid_parameter_value(f"top_k must be at least 1, not {top_k}.")
        images = list(model_input.iloc[:, 0])
        try:
            check_request(images, self.limits)
            _check_kind(images)
            return classify(self.classifier, images, top_k=top_k)
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


def _check_kind(images: Sequence[Any]) -> None:
    """Refuse, on a server, whatever is not the content of a file."""
    odd = [number for number, image in enumerate(images, 1) if not isinstance(image, bytes)]
    if odd and os.environ.get(SERVING, "").lower() == "true":
        raise DataError(
            f"Image {odd[0]} is not the bytes of a file. A server opens no paths; send the content"
            " as base64 in JSON."
        )


mlflow.models.set_model(ServedClassifier())
