"""Options of what is done with a trained classifier."""

from pydantic import Field, PositiveInt

from thawline.options.types import AUTO, Fraction, Options


class ServingOptions(Options):
    """What a classifier says besides a label, in predictions and over HTTP."""

    coverage: Fraction | None = 0.9
    by_class: bool = False
    refuse: bool = True


class DriftOptions(Options):
    """New images that are compared with those that a classifier was evaluated on."""

    root: str | None = Field(None, min_length=1)


class ReviewOptions(Options):
    """What a person looks at besides the data set."""

    unlabeled: str | None = Field(None, min_length=1)


class RegistryOptions(Options):
    """The registered model that `finetune` adds versions to; None registers nothing."""

    name: str | None = Field(AUTO, min_length=1)


class PredictOptions(Options):
    """A folder of images, and the model that labels it."""

    root: str | None = Field(None, min_length=1)
    model: str = Field("champion", min_length=1, coerce_numbers_to_str=True)
    top_k: PositiveInt = 5
    batch_size: PositiveInt = 8


class ExportOptions(Options):
    """The model that is exported to ONNX."""

    model: str = Field("latest", min_length=1, coerce_numbers_to_str=True)
