"""Options for strategies: lists of phases, and the choice among them."""

from typing import Annotated, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RootModel,
    model_validator,
)

from thawline.options.types import Options, Probability

Names = Annotated[tuple[str, ...], Field(min_length=1)]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]


class LastStages(Options):
    """The last N stages of a network, head included."""

    last: PositiveInt


class Phase(Options):
    """What is trainable, for how many epochs, at which learning rates.

    None: the value in `TrainingOptions`.
    """

    trainable: Literal["all"] | LastStages | Names
    epochs: NonNegativeInt
    lr: PositiveFloat
    lr_decay: float = Field(1.0, gt=0, le=1)
    stage_lr: dict[str, PositiveFloat] = Field({})
    batch_norm: Literal["train", "eval"] = "train"
    optimizer: Optimizer | None = None
    schedule: Schedule | None = None
    patience: PositiveInt | None = None


class Strategy(Options):
    """A named list of phases."""

    weights: Literal["none"] | None = None
    phases: tuple[Phase, ...] = Field(min_length=1)


class Strategies(RootModel[dict[str, Strategy]]):
    """All strategies in parameters_strategies.yml, by name."""

    model_config = ConfigDict(frozen=True)


class AutoOptions(Options):
    """How the strategy `auto` chooses."""

    by: Literal["size", "probe"] = "size"
    small: PositiveInt = 10_000
    large: PositiveInt = 100_000
    probe_accuracy: Probability = 0.9

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.small > self.large:
            raise ValueError(f"small ({self.small}) must not be above large ({self.large})")
        return self
