"""The MLflow model, as code: MLflow runs this file where a classifier is served."""

from pathlib import Path

import mlflow
import pandas as pd
from mlflow.pyfunc import PythonModel, PythonModelContext

from thawline.classifier import classify, load_classifier


class ServedClassifier(PythonModel):
    """Answers with label and probability for image files, given as paths or as their bytes."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the classifier once, when the model is loaded."""
        self.classifier = load_classifier(Path(context.artifacts["classifier"]))

    def predict(self, context, model_input: pd.DataFrame, params=None) -> pd.DataFrame:  # type: ignore[no-untyped-def]
        """Return a data frame with the columns label and probability, a row an image."""
        return classify(self.classifier, list(model_input.iloc[:, 0]))


mlflow.models.set_model(ServedClassifier())
