"""Validate all parameters before anything runs."""

from pathlib import Path

from kedro.framework.context import KedroContext
from kedro.framework.hooks import hook_impl
from kedro.io import DataCatalog
from kedro.pipeline import Pipeline

from thawline.errors import ParameterError
from thawline.hooks.configuration import register_project_path
from thawline.options import validate_parameters
from thawline.sweep.space import possible_strategies


class ParametersHook:
    """Validates all parameters together, and a strategy's stages against the backbone.

    Kedro's own validation sees one group at a time: it accepts unknown groups and ignores plain
    values such as `strategy` and `seed`.
    """

    @hook_impl(tryfirst=True)
    def after_context_created(self, context: KedroContext) -> None:
        """Register ``${project_path:}`` for the configuration files, then validate."""
        from thawline.data.sources import find_root
        from thawline.datasets import ClassifierDataset
        from thawline.datasets.image_table_dataset import ImageTable

        register_project_path(context.project_path)
        options = self._parameters = validate_parameters(context.config_loader["parameters"])
        # Of this, Kedro makes what nodes take as `params:`.
        context.config_loader["parameters"] = options.model_dump()
        ClassifierDataset.own = options.model
        self._project = project = Path(context.project_path)
        ImageTable.current_root = find_root(options.dataset.root, project, project)

    @hook_impl
    def after_catalog_created(self, catalog: DataCatalog) -> None:
        """Give nodes `parameters` as what was validated, as Kedro does with `params:GROUP`."""
        catalog["parameters"].save(self._parameters)

    @hook_impl(tryfirst=True)  # before an MLflow run begins
    def before_pipeline_run(self, pipeline: Pipeline) -> None:
        """Check that data and weights exist, and that the backbone has the strategies' stages.

        Raises:
            DataError: if there are no data, or their corrections cannot be read.
            CheckpointError: if the weights file does not exist or is empty.
            ParameterError: if the backbone has no such stage.
        """
        from thawline.data.corrections import read_corrections
        from thawline.data.sources import check_root
        from thawline.networks.files import check_weights_file, is_weights_file

        names, chosen = {node.name for node in pipeline.nodes}, set()
        if "scan_images" in names:
            dataset = self._parameters.dataset
            check_root(dataset.root, self._project)
            if dataset.corrections:
                read_corrections(self._project / Path(dataset.corrections).expanduser())
        if "build_model" in names and is_weights_file(self._parameters.model.weights):
            check_weights_file(Path(self._parameters.model.weights).expanduser())
        if names & {"build_model", "choose_strategy"}:
            chosen.add(self._parameters.strategy)
        if "train_strategies" in names:
            chosen.update(self._parameters.compare.strategies)
        if "run_sweep" in names:
            chosen.update(possible_strategies(self._parameters))
        strategies = {n: s for n, s in self._parameters.strategies.items() if n in chosen}
        if not strategies:
            return
        from thawline.networks.building import build_on_meta_device
        from thawline.thaw.freezing import find_unknown_names

        network = build_on_meta_device(self._parameters.model)
        if network and (problems := find_unknown_names(network, strategies)):
            lines = "\n".join(f"  {line}" for line in problems)
            raise ParameterError(
                f"These parameters do not fit {self._parameters.model.backbone}:\n{lines}"
            )
