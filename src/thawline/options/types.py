"""Types that several groups of parameters share."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**32 - 1  # NumPy's and scikit-learn's bound
AUTO = "auto"  # Thawline chooses the value from the data
PROBE, FINE_TUNE = "all_stages", "lp_ft"  # strategies that the strategy auto tries

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Tta = Literal["none", "flip", "five_crop"]  # test-time augmentation


class Options(BaseModel):
    """A group of parameters: immutable, and an unknown name in it is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
