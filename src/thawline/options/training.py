"""Options for training: network, strategies, optimization, activation cache, workers."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    field_validator,
    model_validator,
)

from thawline.options.types import Fraction, Options, Probability

Names = Annotated[tuple[str, ...], Field(min_length=1)]
MAX_C = 10.0  # a larger one changes next to nothing
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]


class ModelOptions(Options):
    """The backbone, its weights and the new head."""

    backbone: str = Field("timm/tf_efficientnet_lite0", min_length=1)
    weights: str = Field("default", min_length=1)
    backbone_kwargs: dict[str, Any] = Field({})
    trust_pickle: bool = False
    trust_code: bool = False
    min_loaded: Probability = 0.95
    head: Literal["linear", "mlp", "all_stages", "builtin"] = "linear"
    head_hidden: PositiveInt = 256
    head_dropout: Probability | None = None
    reuse_head: bool = True
    log_probabilities: bool = False

    @field_validator("head", mode="before")
    @classmethod
    def _refuse_old_name(cls, head: Any) -> Any:
        if head == "own":
            raise ValueError("the value own was renamed to builtin")
        return head

    @model_validator(mode="after")
    def _check_builtin_head(self) -> Self:
        if self.head != "builtin":
            return self
        if ":" not in self.backbone:
            raise ValueError(
                f"head: builtin needs a network of your own, and {self.backbone} comes from a"
                " library. Set model.backbone=package.module:Factory, or model.head=linear,"
                " all_stages or mlp"
            )
        if self.head_dropout is not None:
            raise ValueError(
                f"head_dropout: {self.head_dropout:g} does not apply to a builtin head. Set it to"
                " null, and pass the dropout to your network through model.backbone_kwargs"
            )
        return self


class LastStages(Options):
    """The last N stages of a network, head included."""

    last: PositiveInt


class Lora(Options):
    """Low-rank updates W + (alpha / rank) B A of the weights in the last N stages.

    The head is one of these stages, as in `LastStages`, and is trained in full.
    """

    stages: int = Field(ge=2)
    rank: PositiveInt = 8
    alpha: PositiveFloat = 8


class LoraStages(Options):
    """The last stages of a network, which low-rank updates train."""

    lora: Lora


def _kind_of_trainable(value: Any) -> str:
    """Return the tag of what a value is meant for, so that an error is about that alone."""
    if isinstance(value, (dict, LastStages, LoraStages)):
        return "LoraStages" if "lora" in dict(value) else "LastStages"
    return "word" if isinstance(value, str) else "names"


Trainable = Annotated[
    Annotated[Literal["all"], Tag("word")]
    | Annotated[LastStages, Tag("LastStages")]
    | Annotated[LoraStages, Tag("LoraStages")]
    | Annotated[Names, Tag("names")],
    Discriminator(_kind_of_trainable),
]


class Phase(Options):
    """What is trainable, for how many epochs, at which learning rates.

    None: the value in `TrainingOptions` or `TransformOptions`. The optimizer lbfgs fits the head's
    linear layer by logistic regression, in one epoch and without a rate.
    """

    trainable: Trainable
    epochs: NonNegativeInt = 1
    lr: PositiveFloat = 1.0
    lr_decay: float = Field(1.0, gt=0, le=1)
    stage_lr: dict[str, PositiveFloat] = Field({})
    batch_norm: Literal["train", "eval"] = "train"
    optimizer: Optimizer | Literal["lbfgs"] | None = None
    schedule: Schedule | None = None
    patience: PositiveInt | None = None
    size: PositiveInt | None = None
    max_c: float = Field(MAX_C, gt=0, le=MAX_C)

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        if self.max_c != MAX_C and self.optimizer != "lbfgs":
            raise ValueError("max_c: only the optimizer lbfgs chooses C")
        missing = sorted({"epochs", "lr"} - self.model_fields_set)
        if self.optimizer != "lbfgs" and missing:
            raise ValueError(f"{missing[0]}: a phase needs it, unless its optimizer is lbfgs")
        if self.optimizer == "lbfgs" and (
            self.epochs > 1 or self.trainable not in (LastStages(last=1), ("head",))
        ):
            raise ValueError(
                "optimizer: lbfgs fits the head once; set trainable: { last: 1 } and no epochs"
            )
        return self


class Strategy(Options):
    """A named list of phases."""

    weights: Literal["none"] | None = None
    head: Literal["all_stages"] | None = None
    phases: tuple[Phase, ...] = Field(min_length=1)


class AutoOptions(Options):
    """How the strategy `auto` chooses."""

    budget_minutes: NonNegativeFloat = 5


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
    wise_ft: bool = False
    clip_norm: PositiveFloat | None = None
    monitor: Literal["val_accuracy", "val_loss"] = "val_accuracy"
    patience: PositiveInt | None = None
    resume: bool = False
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
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
