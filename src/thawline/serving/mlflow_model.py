"""The MLflow model, as code: MLflow runs this file where a classifier is served."""

import os
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from thawline.errors import DataError
from thawline.networks.classifier import load_classifier
from thawline.options import ModelOptions
from thawline.serving.requests import RequestLimits, check_request, classify

# MLflow sets it to "true" in a scoring server. Nothing public says so.
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


class ServedClassifier(PythonModel):
    """Predict label and probability of image files, given as bytes or paths.

    Only a server refuses paths, so that clients cannot probe its files.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the classifier, once."""
        # MLflow runs this file out of the same artifact: whoever loads it trusts its code already.
        trusting = ModelOptions(trust_code=True)
        self.classifier = load_classifier(Path(context.artifacts["classifier"]), trusting)
        self.limits = RequestLimits(**(context.model_config or {}))

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        """Return label and probability, one row per image.

        If `params` has a `top_k` above 1, label_2, probability_2 and so on follow.

        Raises:
            MlflowException: if an image cannot be read, or the request exceeds the limits of the
                model; over HTTP this returns status 400.
        """
        top_k = (params or {}).get("top_k", 1)
        if top_k < 1:
            raise MlflowException.invalid_parameter_value(f"top_k must be at least 1, not {top_k}.")
        images = list(model_input.iloc[:, 0])
        try:
            in_server = os.environ.get(SERVING, "").lower() == "true"
            check_request(images, self.limits, takes_paths=not in_server)
            answers = classify(self.classifier, images, top_k).astype(object)
            return answers.where(answers.notna(), None)  # JSON has no NaN
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


mlflow.models.set_model(ServedClassifier())
