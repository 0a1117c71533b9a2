"""Nodes of the export."""

import logging

from thawline.options import ExportOptions, ModelOptions, RegistryOptions
from thawline.pipelines.types import OnnxModel, ProjectFolders

logger = logging.getLogger(__name__)


def export_model(
    registry: ProjectFolders,
    options: ExportOptions,
    registry_options: RegistryOptions,
    model: ModelOptions,
) -> OnnxModel:
    """Return the model as ONNX, checked, with a description of its inputs and outputs."""
    from thawline.serving.find_model import find_model
    from thawline.serving.onnx import export_onnx

    found = find_model("export.model", options.model, registry_options.name, model, registry)
    onnx_file, description = export_onnx(found.classifier)
    logger.info(
        "%s as ONNX, %.1f MB; its outputs differ from the network's by at most %.1e",
        found,
        len(onnx_file) / 1e6,
        description["check"]["largest_difference"],
    )
    return onnx_file, description
