"""Options for training: optimization, the activation cache, the learning-rate test, workers."""

from typing import Any, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from thawline.options.strategies import Optimizer, Schedule
from thawline.options.types import Fraction, Options


class TrainingOptions(Options):
    """How every phase is trained."""

    epochs: NonNegativeInt | None = None
    lr: PositiveFloat | None = None
    batch_size: PositiveInt = 32
    gradient_accumulation_steps: PositiveInt = 1
    optimizer: Optimizer = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: NonNegativeFloat = 0.01
    decay_all: bool = False
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    schedule: Schedule = "cosine"
    step_epochs: PositiveInt = 10
    step_factor: float = Field(0.1, gt=0, lt=1)
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffled", "balanced"] = "shuffled"
    ema_decay: Fraction | None = None
    clip_norm: PositiveFloat | None = None
    monitor: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    patience: PositiveInt | None = None
    resume: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    num_workers: NonNegativeInt | None = None


class ActivationOptions(Options):
    """The cache of frozen layers' outputs."""

    max_gb: NonNegativeFloat = 10


class LrFindOptions(Options):
    """The learning-rate range test."""

    start_lr: PositiveFloat = 1e-5
    end_lr: PositiveFloat = 1.0
    steps: int = Field(100, ge=20)

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.start_lr >= self.end_lr:
            raise ValueError(f"start_lr ({self.start_lr:g}) must be below end_lr ({self.end_lr:g})")
        return self


class EngineOptions(Options):
    """Where networks are trained."""

    name: Literal["local", "ray"] = "local"
    address: str | None = Field(None, min_length=1)
    workers: PositiveInt | None = None
    gpus_per_worker: NonNegativeFloat | None = None
    sync_batch_norm: bool = True

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, options: Any) -> Any:
        return {"name": options} if isinstance(options, str) else options
