"""The MLflow model, as code: MLflow runs this file where a classifier is served."""

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from thawline.classifier import classify, load_classifier
from thawline.errors import DataError


class ServedClassifier(PythonModel):
    """Answers with label and probability for image files, given as paths or as their bytes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the classifier once, when the model is loaded."""
        self.classifier = load_classifier(Path(context.artifacts["classifier"]))

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        """Return a data frame with the columns label and probability, a row an image.

        Where `params` asks for a `top_k` above 1, label_2, probability_2 and so on follow.

        Raises:
            MlflowException: when an image cannot be read; over HTTP the answer is 400.
        """
        top_k = (params or {}).get("top_k", 1)
        if top_k < 1:
            raise MlflowException.invalid_parameter_value(f"top_k must be at least 1, not {top_k}.")
        try:
            return classify(self.classifier, list(model_input.iloc[:, 0]), top_k=top_k)
        except DataError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from error


mlflow.models.set_model(ServedClassifier())
