"""Every parameter as a typed, validated option; conf/base documents each of them.

Each class is one group of parameters. Kedro converts a ``params:`` input to such an object, by the
node's type hint. `validate_parameters` checks all groups at once, before a run begins.
"""

from thawline.options.dataset import (
    AugmentationOptions,
    BitDepth,
    Channels,
    DatasetOptions,
    Interpolation,
    ScreeningOptions,
    SplitFractions,
    TransformOptions,
)
from thawline.options.parameters import (
    TRAINING_GROUPS,
    AttributionMethod,
    CompareOptions,
    Dimension,
    EvaluationOptions,
    ExplainOptions,
    Parameters,
    SweepOptions,
    flatten,
)
from thawline.options.training import (
    ActivationOptions,
    AutoOptions,
    EngineOptions,
    LastStages,
    LoraStages,
    LrFindOptions,
    ModelOptions,
    Phase,
    Strategy,
    TrainingOptions,
)
from thawline.options.types import AUTO, FINE_TUNE, PROBE, Options, Tta
from thawline.options.use import (
    DriftOptions,
    ExportOptions,
    PredictOptions,
    RegistryOptions,
    ReviewOptions,
    ServingOptions,
)
from thawline.options.validation import RENAMED, validate_parameters

__all__ = [
    "AUTO", "FINE_TUNE", "PROBE", "RENAMED", "TRAINING_GROUPS", "ActivationOptions",
    "AttributionMethod", "AugmentationOptions", "AutoOptions", "BitDepth", "Channels",
    "CompareOptions", "DatasetOptions", "Dimension", "DriftOptions", "EngineOptions",
    "EvaluationOptions", "ExplainOptions", "ExportOptions", "Interpolation", "LastStages",
    "LoraStages", "LrFindOptions", "ModelOptions", "Options", "Parameters", "Phase",
    "PredictOptions", "RegistryOptions", "ReviewOptions", "ScreeningOptions", "ServingOptions",
    "SplitFractions", "Strategy", "SweepOptions", "TrainingOptions", "TransformOptions", "Tta",
    "flatten", "validate_parameters",
]  # fmt: skip
