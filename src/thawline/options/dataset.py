"""Options for images: where they are, which are used, and how they are transformed."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from thawline.options.types import Fraction, Options, Probability, Seed

MAX_SUM_ERROR = 1e-6

Channels = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
BitDepth = Literal["auto", 8, 12, 16]
NearDuplicates = Annotated[
    Literal["group", "report", "off"],
    BeforeValidator(lambda mode: "off" if mode is False else mode),  # YAML 1.1 reads off as false
]


class SplitFractions(Options):
    """Fractions of the images in each split."""

    train: Fraction = 0.7
    val: Fraction = 0.15
    test: Fraction = 0.15

    @model_validator(mode="after")
    def _sum_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > MAX_SUM_ERROR:
            raise ValueError(f"train, val and test must add up to 1, not {total:g}")
        return self


class DatasetOptions(Options):
    """Where the images are and how they are split."""

    root: str = Field("sklearn:digits", min_length=1)
    allow_external_paths: bool = False
    corrections: str | None = None
    fractions: SplitFractions = SplitFractions()
    seed: Seed | None = None


class ScreeningOptions(Options):
    """How to treat files that cannot or should not be trained on."""

    on_problem: Literal["quarantine", "error"] = "quarantine"
    conflicting_labels: Literal["drop", "keep"] = "drop"
    near_duplicates: NearDuplicates = "group"
    seen_test_images: Literal["move", "error"] = "move"
    on_leak: Literal["error", "warn"] = "error"
    max_mb: PositiveFloat = 100
    max_megapixels: float = Field(89, gt=0, le=178)  # Pillow refuses larger images
    min_side: PositiveInt = 4
    min_images: PositiveInt = 3


class TransformOptions(Options):
    """Preprocessing and augmentation; None: as for the pretrained weights."""

    size: PositiveInt | None = None
    resize: PositiveInt | None = None
    interpolation: Interpolation | None = None
    mean: tuple[Probability, Probability, Probability] | None = None
    std: Channels | None = None
    bit_depth: BitDepth = "auto"
    min_crop_scale: float = Field(0.5, gt=0, le=1)
    rotation: float = Field(15, ge=0, le=180)
    horizontal_flip: Probability = 0.5

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be greater than 0 for every channel")
        if self.size and self.resize and self.resize < self.size:
            raise ValueError("resize must not be smaller than size: the center crop would not fit")
        return self


class AugmentationOptions(Options):
    """Random views per training image, what is done to them, and how images are mixed."""

    views_per_image: PositiveInt | None = 4
    policy: Literal["basic", "trivial", "rand"] = "basic"
    color_jitter: Probability = 0
    random_erasing: Probability = 0
    mixup: NonNegativeFloat = 0
    cutmix: NonNegativeFloat = 0

    def of_views(self) -> dict[str, Any]:
        """Return what a random view depends on, as far as it is not the default.

        So views at the defaults of these options keep the cache keys of versions without them.
        """
        names = {"policy", "color_jitter", "random_erasing"}
        return self.model_dump(mode="json", include=names, exclude_defaults=True)
