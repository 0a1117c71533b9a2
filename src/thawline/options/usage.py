"""Options for what runs beside or after a training: evaluate, compare, search, explain, use."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    field_validator,
    model_validator,
)

from thawline.options.types import AUTO, Options

AttributionMethod = Literal["grad_cam", "guided_grad_cam", "integrated_gradients"]
Words = Annotated[  # the command line passes a list as words
    tuple[str, ...], BeforeValidator(lambda text: text.split() if isinstance(text, str) else text)
]


class EvaluationOptions(Options):
    """How the test split is evaluated."""

    top_k: PositiveInt = 5
    batch_size: PositiveInt = 16


class CompareOptions(Options):
    """Which strategies are compared, with how many seeds."""

    strategies: Words = Field(("head_only", "freeze_to_layer3", "full"), min_length=1)
    num_seeds: PositiveInt = 3

    @field_validator("strategies")
    @classmethod
    def _refuse_repeats(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(repeated)} is named more than once")
        return names


class Dimension(Options):
    """One parameter of the search space: an interval of numbers or a list of choices."""

    type: Literal["float", "int", "categorical"]
    low: float | None = None
    high: float | None = None
    log: bool = False
    step: PositiveFloat | None = None
    choices: tuple[bool | int | float | str | None, ...] = ()
    strategies: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        bounds = (self.low, self.high, self.step)
        if self.type == "categorical":
            if not self.choices or bounds != (None, None, None) or self.log:
                raise ValueError("a categorical needs choices, and no low, high, step or log")
            return self
        if self.choices or self.low is None or self.high is None:
            raise ValueError(f"a{'n' * (self.type == 'int')} {self.type} needs low and high")
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.type == "int" and any(bound and bound % 1 for bound in bounds):
            raise ValueError("low, high and step of an int must be whole numbers")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log needs a low above 0, and no step")
        return self


class SweepOptions(Options):
    """The search for good parameters."""

    trials: PositiveInt | None = 20
    timeout_minutes: PositiveFloat | None = None
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = "median"
    study: str = Field("sweep", min_length=1)
    storage: SecretStr | None = None
    space: dict[str, Dimension | None] = Field({})

    @model_validator(mode="after")
    def _check_end(self) -> Self:
        if self.trials is None and self.timeout_minutes is None:
            raise ValueError("trials and timeout_minutes are both null; set one of them")
        return self


class ExplainOptions(Options):
    """Which predictions are explained, and how."""

    method: AttributionMethod = "grad_cam"
    images: Literal["worst"] | Words = Field("worst", union_mode="left_to_right")
    count: PositiveInt = 10

    @field_validator("images")
    @classmethod
    def _refuse_none(cls, images: Any) -> Any:
        if not images:
            raise ValueError("the list is empty; give image paths or worst")
        return images


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
