"""Pin the versions that a run reads, so that classifier, splits and predictions fit together."""

import logging
from typing import Any

from kedro.framework.hooks import hook_impl
from kedro.io import Version
from kedro.pipeline import Pipeline

from thawline.errors import DataError
from thawline.hooks.catalog import RunCatalog
from thawline.tracking.entries import log_entry

logger = logging.getLogger(__name__)

CLASSIFIER_ENTRIES = {"splits", "predictions"}  # saved by the run that saved a classifier


class VersionsHook:
    """Reads a classifier's own splits and predictions, and keeps the splits of a training."""

    @hook_impl(tryfirst=True)  # before an MLflow run begins
    def before_pipeline_run(
        self, run_params: dict[str, Any], pipeline: Pipeline, catalog: RunCatalog
    ) -> None:
        """Pin the splits and predictions of the classifier that the pipeline reads.

        The latest splits need not be those that the latest classifier was trained with.

        Raises:
            DataError: if there are none of the classifier's version.
        """
        self._catalog, inputs = catalog, pipeline.inputs()
        self._keeps_splits = "splits" in inputs and "classifier" in pipeline.all_outputs()
        if "classifier" not in inputs:
            return
        own = catalog["classifier"].resolve_load_version()  # type: ignore[attr-defined]
        given = run_params["load_versions"] or {}
        for name in sorted(inputs & CLASSIFIER_ENTRIES - {*given}):
            dataset = catalog.get(name, version=Version(own, None))
            if not dataset or not dataset.exists():
                raise DataError(
                    f"{name}: there are none of the classifier's version {own}, so its run did not"
                    f" come to its end. Name another one by --load-versions=classifier:VERSION, or"
                    f" other {name} by --load-versions={name}:VERSION."
                )
            logger.debug("Classifier and %s of version %s", name, own)
            catalog.pin(name, own)

    @hook_impl
    def after_dataset_loaded(self, dataset_name: str, data: Any) -> None:
        """Save splits that a training reads from disk as its own, as if the run had made them.

        So they have the version of its classifier, whatever splits are made later, and are logged.
        """
        if dataset_name == "splits" and self._keeps_splits:
            self._keeps_splits = False
            self._catalog.save(dataset_name, data)
            log_entry(self._catalog, dataset_name, data)

    @hook_impl
    def after_pipeline_run(self, pipeline: Pipeline, catalog: RunCatalog) -> None:
        """Keep the last checkpoints of this run."""
        if "training_checkpoints" in pipeline.inputs():
            catalog["training_checkpoints"].load().finish()
