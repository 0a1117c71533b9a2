"""Options for trained models: evaluate, compare, explain, track, register, predict, export."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, field_validator

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
