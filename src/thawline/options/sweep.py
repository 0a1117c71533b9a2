"""Options for the parameter search."""

from typing import Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, SecretStr, model_validator

from thawline.options.types import Options


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
