"""Every parameter of Thawline as a typed, documented and validated option.

Each class is one group of conf/base/parameters.yml. Kedro turns a ``params:`` input into such an
object through the type hint of the node; `validate_parameters` checks the whole tree at once.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RootModel,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from thawline.errors import ParameterError, did_you_mean

Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
LARGEST_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Channels = tuple[float, float, float]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
BitDepth = Literal["auto", 8, 12, 16]
Optimizer = Literal["adamw", "sgd"]
Schedule = Literal["cosine", "step", "constant"]
AttributionMethod = Literal["grad_cam", "guided_grad_cam", "integrated_gradients"]

AUTO = "auto"  # the strategy that is chosen by the data
# What the result of a training depends on, besides the images.
TRAINING_GROUPS = (
    "seed", "strategy", "strategies", "transforms", "augmentation", "model", "auto", "training",
)  # fmt: skip
# Parameters of earlier versions, by dotted name: why each is gone, and what to do.
REMOVED = {
    "evaluation.bootstrap_samples": "the interval of the accuracy is computed without resampling,"
    " from the test images and their groups. Leave it out.",
}


# Parameters and values with a new name.
RENAMED = {
    "augmentation.views": "augmentation.views_per_image",
    "compare.seeds": "compare.num_seeds",
    "dataset.allow_outside": "dataset.allow_external_paths",
    "lr_find.high": "lr_find.end_lr",
    "lr_find.low": "lr_find.start_lr",
    "model.arguments": "model.backbone_kwargs",
    "model.keep_head_rows": "model.reuse_head",
    "screening.contradictions": "screening.conflicting_labels",
    "sweep.minutes": "sweep.timeout_minutes",
    "training.accumulate": "training.gradient_accumulation_steps",
    "training.ema": "training.ema_decay",
    "training.warmup": "training.warmup_ratio",
    "training.workers": "training.num_workers",
    "transforms.crop_scale": "transforms.min_crop_scale",
}


class Options(BaseModel):
    """Base of all groups: immutable, and a name that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitFractions(Options):
    """Shares of the images in each split."""

    train: Fraction = Field(0.7, description="share of the images that train the network")
    val: Fraction = Field(0.15, description="share that chooses the best epoch")
    test: Fraction = Field(0.15, description="share that only the final figures come from")

    @model_validator(mode="after")
    def _sum_to_one(self) -> SplitFractions:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:  # noqa: PLR2004
            raise ValueError(f"train, val and test must add up to 1, not {total:g}")
        return self


class DatasetOptions(Options):
    """Where the images are and how they are split."""

    root: str = Field(
        "sklearn:digits",
        min_length=1,
        description="a folder per class, a folder with train/ val/ test/, a folder of tar shards, "
        "a CSV or Parquet file, torchvision:NAME or sklearn:digits",
    )
    allow_external_paths: bool = Field(
        False,
        description="a CSV or Parquet file may name images outside of the folder that it lies in",
    )
    fractions: SplitFractions = SplitFractions()
    seed: Seed | None = Field(
        None, description="of the splits and the random views; null: the parameter seed"
    )


class ScreeningOptions(Options):
    """What becomes of files that cannot or should not be trained on."""

    on_problem: Literal["quarantine", "error"] = Field(
        "quarantine", description="set such files aside in a table, or stop the run"
    )
    conflicting_labels: Literal["drop", "keep"] = Field(
        "drop", description="all copies of an image that stands in several classes"
    )
    near_duplicates: Literal["group", "report", "off"] = Field(
        "group",
        description="images of a class that look alike: keep them in one split, only list them, or "
        "do not look for them",
    )
    seen_test_images: Literal["move", "error"] = Field(
        "move",
        description="test images that the classifier in model.weights was trained or validated on: "
        "move them to the training split, or stop the run",
    )
    on_leak: Literal["error", "warn"] = Field(
        "error", description="where an image of the test split is in another split too"
    )
    max_mb: PositiveFloat = Field(100, description="MB (10^6 bytes), of a file")
    max_megapixels: float = Field(
        89, gt=0, le=178, description="million pixels of an image; Pillow refuses more than 178"
    )
    min_side: PositiveInt = Field(4, description="px, of an image's shorter side")
    min_images: PositiveInt = Field(
        3, description="of a class; one with fewer is left out as a whole"
    )

    @field_validator("near_duplicates", mode="before")
    @classmethod
    def _from_yaml(cls, mode: Any) -> Any:
        return "off" if mode is False else mode  # as YAML 1.1 reads `off`


class TransformOptions(Options):
    """Preprocessing and augmentation; null takes what the weights were trained with."""

    size: PositiveInt | None = Field(None, description="px, side of the square network input")
    resize: PositiveInt | None = Field(None, description="px, shorter side before the center crop")
    interpolation: Interpolation | None = Field(None, description="of every resize")
    mean: Channels | None = Field(None, description="per channel, of values from 0 to 1")
    std: Channels | None = Field(None, description="per channel, of values from 0 to 1")
    bit_depth: BitDepth = Field(
        "auto",
        description="of the values in grayscale files of more than 8 bits; auto: 16 for integers, "
        "and floats are from 0 to 1",
    )
    min_crop_scale: float = Field(
        0.08, gt=0, le=1, description="smallest share of the image's area a training crop keeps"
    )
    rotation: float = Field(15, ge=0, le=180, description="degrees, at most, to either side")
    horizontal_flip: Probability = Field(0.5, description="probability of a mirrored view")

    @model_validator(mode="after")
    def _sensible(self) -> TransformOptions:
        if self.std is not None and min(self.std) <= 0:
            raise ValueError("std must be greater than 0 for every channel")
        if self.size and self.resize and self.resize < self.size:
            raise ValueError("resize must not be smaller than size: the center crop would not fit")
        return self


class AugmentationOptions(Options):
    """How many random views of each training image there are, and whether they are mixed."""

    views_per_image: PositiveInt | None = Field(
        4, description="random views of each image, in turn; null: a new one in every epoch"
    )
    mixup: NonNegativeFloat = Field(
        0, description="alpha of the Beta distribution that two images are blended by; 0: never"
    )
    cutmix: NonNegativeFloat = Field(
        0, description="alpha of the same for a rectangle of another image; 0: never"
    )


class ModelOptions(Options):
    """The backbone, its weights and the new head."""

    backbone: str = Field(
        "timm/tf_efficientnet_lite0",
        min_length=1,
        description="a torchvision classifier, timm/NAME, or package.module:Factory",
    )
    weights: str = Field(
        "default",
        min_length=1,
        description="default, none, a name of torchvision's weights enum, or a file",
    )
    backbone_kwargs: dict[str, Any] = Field({}, description="keyword arguments of the constructor")
    trust_pickle: bool = Field(
        False, description="let a file of weights run the code in it (whole pickled networks)"
    )
    trust_code: bool = Field(
        False,
        description="import the factory that a classifier names, though it is not model.backbone",
    )
    min_loaded: Probability = Field(
        0.95, description="share of the backbone's tensors that a file of weights must bring"
    )
    head: Literal["linear", "mlp", "builtin"] = Field(
        "linear", description="the new classifier; builtin: the one that your own network builds"
    )
    head_hidden: PositiveInt = Field(256, description="units of the mlp's hidden layer")
    head_dropout: Probability | None = Field(
        None, description="dropout probability of the new head; null: 0.4 for mlp, 0 for linear"
    )
    reuse_head: bool = Field(
        True, description="keep the old head's weights of classes that the new one has too"
    )
    log_probabilities: bool = Field(False, description="LogSoftmax with NLLLoss")

    @field_validator("head", mode="before")
    @classmethod
    def _own_is_builtin(cls, head: Any) -> Any:
        if head == "own":
            raise ValueError("own: renamed to builtin")
        return head

    @model_validator(mode="after")
    def _own_head_is_left_alone(self) -> ModelOptions:
        if self.head == "builtin" and self.head_dropout is not None:
            raise ValueError(
                f"head_dropout: {self.head_dropout:g} cannot be put into a head of your own; leave"
                " it null and let your network's constructor take it from model.backbone_kwargs"
            )
        return self


class LastStages(Options):
    """The last N stages of the network, the head being the last one."""

    last: PositiveInt


class Phase(Options):
    """What is trainable, for how long and how fast."""

    trainable: Literal["all"] | LastStages | Names = Field(
        description="all, {last: N}, or stage names and globs over parameter names"
    )
    epochs: NonNegativeInt = Field(description="passes over the training split")
    lr: PositiveFloat = Field(description="learning rate of the head")
    lr_decay: float = Field(1.0, gt=0, le=1, description="factor from a stage to the one below")
    stage_lr: dict[str, PositiveFloat] = Field({}, description="learning rate of single stages")
    batch_norm: Literal["train", "eval"] = Field(
        "train", description="mode of the trainable part's batch norm"
    )
    optimizer: Optimizer | None = Field(None, description="null: training.optimizer")
    schedule: Schedule | None = Field(None, description="null: training.schedule")
    patience: PositiveInt | None = Field(None, description="null: training.patience")


class Strategy(Options):
    """A named list of phases."""

    weights: Literal["none"] | None = Field(None, description="none: start from random weights")
    phases: tuple[Phase, ...] = Field(min_length=1)


class Strategies(RootModel[dict[str, Strategy]]):
    """All strategies that parameters_strategies.yml defines, by name."""

    model_config = ConfigDict(frozen=True)


class AutoOptions(Options):
    """How the strategy `auto` chooses."""

    by: Literal["size", "probe"] = Field("size", description="images, or measured features")
    small: PositiveInt = Field(
        10_000, description="images; with fewer in the training split freeze_to_layer3"
    )
    large: PositiveInt = Field(
        100_000, description="images; with more full, and freeze_to_layer1 between the two"
    )
    probe_accuracy: Probability = Field(
        0.9, description="where no stage's features reach this accuracy: full"
    )

    @model_validator(mode="after")
    def _in_order(self) -> AutoOptions:
        if self.small > self.large:
            raise ValueError(f"small ({self.small}) must not be above large ({self.large})")
        return self


class TrainingOptions(Options):
    """How every phase is trained."""

    epochs: NonNegativeInt | None = Field(
        None, description="of every phase, instead of its own; 0: only evaluate"
    )
    lr: PositiveFloat | None = Field(None, description="of every phase, instead of its own")
    batch_size: PositiveInt = Field(32, description="images a step")
    gradient_accumulation_steps: PositiveInt = Field(1, description="batches per optimizer step")
    optimizer: Optimizer = "adamw"
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd only")
    weight_decay: NonNegativeFloat = 0.01
    decay_all: bool = Field(
        False, description="weight decay also acts on biases, norms and position embeddings"
    )
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of a phase's steps")
    schedule: Schedule = "cosine"
    step_epochs: PositiveInt = Field(10, description="epochs between two drops of the rate")
    step_factor: float = Field(0.1, gt=0, lt=1, description="what a drop multiplies it by")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffled", "balanced"] = Field(
        "shuffled", description="every image once an epoch, or every class equally often"
    )
    ema_decay: Fraction | None = Field(
        None, description="decay a step of the moving average of the weights; null: no average"
    )
    clip_norm: PositiveFloat | None = Field(None, description="largest gradient norm")
    monitor: Literal["val_accuracy", "val_loss"] = Field(
        "val_accuracy", description="which epoch is best; ties go to the lower val_loss"
    )
    patience: PositiveInt | None = Field(None, description="epochs without a better one")
    resume: bool = Field(False, description="go on where the same command was interrupted")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 if the hardware has it, else fp32; fp16 scales the loss, for GPUs "
        "without bf16",
    )
    num_workers: int | None = Field(
        None, ge=0, description="decoding processes; null: one per core"
    )


class ActivationOptions(Options):
    """The store of what the frozen part of the network yields."""

    max_gb: NonNegativeFloat = Field(
        10, description="GB (10^9 bytes) on disk, the least recently used go first; 0: no store"
    )


class LrFindOptions(Options):
    """The sweep of the learning rate."""

    start_lr: PositiveFloat = Field(1e-5, description="first learning rate of the head")
    end_lr: PositiveFloat = Field(1.0, description="last learning rate of the head")
    steps: int = Field(100, ge=20, description="updates from the one to the other")

    @model_validator(mode="after")
    def _in_order(self) -> LrFindOptions:
        if self.start_lr >= self.end_lr:
            raise ValueError(f"start_lr ({self.start_lr:g}) must be below end_lr ({self.end_lr:g})")
        return self


class Dimension(Options):
    """A parameter of which a sweep tries values: an interval or a list."""

    type: Literal["float", "int", "categorical"]
    low: float | None = Field(None, description="smallest value of a float or int")
    high: float | None = Field(None, description="largest value of a float or int")
    log: bool = Field(False, description="sample evenly on a logarithmic scale")
    step: PositiveFloat | None = Field(None, description="between two values; null: any, or 1")
    choices: tuple[bool | int | float | str | None, ...] = Field(
        (), description="values of a categorical"
    )
    strategies: tuple[str, ...] = Field(
        (), description="only in trials with one of these strategies; none: in all trials"
    )

    @model_validator(mode="after")
    def _is_a_list_or_an_interval(self) -> Dimension:
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

    trials: PositiveInt | None = Field(
        20, description="that the study has in the end, earlier ones included; null: no bound"
    )
    timeout_minutes: PositiveFloat | None = Field(
        None, description="after which this command begins no further trial; null: no bound"
    )
    sampler: Literal["tpe", "random"] = "tpe"
    pruner: Literal["median", "hyperband", "none"] = Field(
        "median", description="which trials are stopped early, by training.monitor"
    )
    study: str = Field("sweep", min_length=1, description="another name begins a new study")
    storage: SecretStr | None = Field(
        None, description="URL of a database for Optuna; null: data/06_models/sweep.db"
    )
    space: dict[str, Dimension | None] = Field(
        {}, description="what is tried, by dotted name; null: not this one"
    )

    @model_validator(mode="after")
    def _ends(self) -> SweepOptions:
        if self.trials is None and self.timeout_minutes is None:
            raise ValueError("trials and timeout_minutes are both null; give one of them")
        return self


class EvaluationOptions(Options):
    """What is measured on the test split."""

    top_k: PositiveInt = Field(5, description="at most the number of classes")
    batch_size: PositiveInt = Field(16, description="images a step")


class CompareOptions(Options):
    """Which strategies are compared, and how often each of them is trained."""

    strategies: tuple[str, ...] = Field(
        ("head_only", "freeze_to_layer3", "full"),
        min_length=1,
        description="names of strategies; on the command line separated by blanks",
    )
    num_seeds: PositiveInt = Field(
        3, description="trainings of each strategy: with seed, seed + 1, … on the same splits"
    )

    @field_validator("strategies", mode="before")
    @classmethod
    def _from_text(cls, names: Any) -> Any:
        return names.split() if isinstance(names, str) else names

    @field_validator("strategies")
    @classmethod
    def _once_each(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"{', '.join(twice)} is named more than once")
        return names


class RegistryOptions(Options):
    """Where finetune registers its models in MLflow."""

    name: str | None = Field(
        AUTO,
        min_length=1,
        description="of the registered model; auto: after data set and classes; null: "
        "register nothing",
    )


class TrackingOptions(Options):
    """What happens when MLflow cannot be reached."""

    on_failure: Literal["buffer", "fail"] = Field(
        "buffer",
        description="a server that goes away: keep what is logged and send it later | end the run",
    )


class EngineOptions(Options):
    """Where networks are trained."""

    name: Literal["local", "ray"] = Field(
        "local", description="this process, or workers of a Ray cluster; engine=ray is short for it"
    )
    address: str | None = Field(
        None, min_length=1, description="of the cluster; null: one of this run, on this machine"
    )
    workers: PositiveInt | None = Field(
        None, description="that share each batch; null: one a GPU of the cluster, or one a CPU"
    )
    gpus_per_worker: NonNegativeFloat | None = Field(
        None, description="may be a fraction; null: 1 where the cluster has GPUs, else 0"
    )
    sync_batch_norm: bool = Field(
        True, description="batch norm in training sees the whole batch, as in one process"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, options: Any) -> Any:
        return {"name": options} if isinstance(options, str) else options


class PredictOptions(Options):
    """A model over a folder of images."""

    root: str | None = Field(None, min_length=1, description="the folder, with all in it")
    model: str = Field(
        "champion",
        min_length=1,
        coerce_numbers_to_str=True,
        description="champion or another alias, a version, latest, a run id, models:/…, a folder",
    )
    top_k: PositiveInt = Field(5, description="likeliest classes, at most all")
    batch_size: PositiveInt = Field(8, description="images a step; memory grows with it")


class ExportOptions(Options):
    """A model as an ONNX file."""

    model: str = Field(
        "latest", min_length=1, coerce_numbers_to_str=True, description="as predict.model"
    )


class ExplainOptions(Options):
    """What in an image speaks for the class that the classifier sees in it."""

    method: AttributionMethod = Field(
        "grad_cam", description="how evidence is attributed to pixels"
    )
    images: Literal["worst"] | tuple[str, ...] = Field(
        "worst",
        description="the most confident mistakes on the test split, or paths; on the command line "
        "separated by blanks",
    )
    count: PositiveInt = Field(10, description="worst images; paths are explained all")

    @field_validator("images", mode="before")
    @classmethod
    def _from_text(cls, images: Any) -> Any:
        return images.split() if isinstance(images, str) and images != "worst" else images

    @field_validator("images")
    @classmethod
    def _at_least_one(cls, images: Any) -> Any:
        if not images:
            raise ValueError("no path is given; give some, or worst")
        return images


class Parameters(Options):
    """The whole tree of parameters."""

    seed: Seed = 0
    strategy: str = "head_only"
    strategies: dict[str, Strategy]
    dataset: DatasetOptions = DatasetOptions()
    screening: ScreeningOptions = ScreeningOptions()
    transforms: TransformOptions = TransformOptions()
    augmentation: AugmentationOptions = AugmentationOptions()
    model: ModelOptions = ModelOptions()
    auto: AutoOptions = AutoOptions()
    training: TrainingOptions = TrainingOptions()
    lr_find: LrFindOptions = LrFindOptions()
    compare: CompareOptions = CompareOptions()
    activations: ActivationOptions = ActivationOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    explain: ExplainOptions = ExplainOptions()
    registry: RegistryOptions = RegistryOptions()
    tracking: TrackingOptions = TrackingOptions()
    engine: EngineOptions = EngineOptions()
    predict: PredictOptions = PredictOptions()
    export: ExportOptions = ExportOptions()
    sweep: SweepOptions = SweepOptions()

    @model_validator(mode="after")
    def _fit_together(self) -> Parameters:
        if problems := self._contradictions():
            raise ValueError("\n  ".join(problems))
        return self

    def _contradictions(self) -> list[str]:
        """Return a line for each parameter that does not fit another one."""
        problems = []
        possible = [*self.strategies, AUTO]
        named = [("strategy", self.strategy)]
        named += [("compare.strategies", name) for name in self.compare.strategies]
        for parameter, name in named:
            if name not in possible:
                problems.append(f"{parameter}: '{name}' is not a strategy{_one_of(name, possible)}")
        if AUTO in self.strategies:
            problems.append(
                f"strategies.{AUTO}: this name stands for the choice by data; take another one"
            )
        if self.seed + self.compare.num_seeds > LARGEST_SEED + 1:
            problems.append(
                f"compare.num_seeds: {self.compare.num_seeds} from seed {self.seed} on go"
                f" beyond the"
                f" largest possible, {LARGEST_SEED}; lower seed"
            )
        if self.model.head == "builtin" and ":" not in self.model.backbone:
            problems.append(
                f"model.head: builtin needs a network of your own, and {self.model.backbone}"
                f" comes from"
                " a library; give model.backbone=package.module:Factory, or model.head=linear or"
                " mlp"
            )
        if self.model.log_probabilities and self.training.label_smoothing:
            problems.append(
                f"training.label_smoothing: {self.training.label_smoothing:g} needs logits, but "
                "model.log_probabilities is true; set one of the two to its default"
            )
        for name in ("mixup", "cutmix"):
            alpha = getattr(self.augmentation, name)
            if self.model.log_probabilities and alpha:
                problems.append(
                    f"augmentation.{name}: {alpha:g} mixes labels, which negative log likelihood "
                    "cannot take; set model.log_probabilities to false"
                )
        return problems

    def changed(self) -> dict[str, Any]:
        """Return what is not at its default, strategies aside, of what tested trainings depend on.

        By dotted name; for instance `sweep` is not among it.
        """
        groups = {*TRAINING_GROUPS, "dataset", "screening", "evaluation"} - {"strategies"}
        tree, default = (
            dict(flatten(parameters.model_dump(mode="json", include=groups)))
            for parameters in (self, Parameters(strategies=self.strategies))
        )
        return {name: value for name, value in tree.items() if value != default.get(name)}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of every scalar; lists of scalars stay together."""
    inner: Any = ()
    if isinstance(tree, dict):
        inner = tree.items()
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        inner = enumerate(tree)
    if not inner:
        yield prefix, tree
    for name, value in inner:
        yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))


def validate_parameters(raw: Mapping[str, Any]) -> Parameters:
    """Return the validated tree of all parameters.

    Args:
        raw: plain values, or groups that Kedro has already made options of.

    Raises:
        ParameterError: naming, for every problem at once, the parameter by its dotted name, what
            was given and what is possible.
    """
    plain = {
        name: group.model_dump() if isinstance(group, BaseModel) else group
        for name, group in raw.items()
    }
    try:
        return Parameters.model_validate(plain)
    except ValidationError as error:
        problems = [_describe(problem) for problem in error.errors()]
        problems += _contradictions_beside(plain, error)
        raise ParameterError(
            "These parameters cannot be used:\n" + "\n".join(f"  {line}" for line in problems)
        ) from error


def _contradictions_beside(plain: Any, error: ValidationError) -> list[str]:
    """Return the contradictions among values that are each possible: pydantic stops before them.

    What is impossible is left out for that, and has its default.
    """
    rest = copy.deepcopy(plain)
    for *groups, name in (problem["loc"] for problem in error.errors() if problem["loc"]):
        group: Any = rest
        for inner in groups:
            group = group.get(inner) if isinstance(group, dict) else None
        if not isinstance(group, dict) or "strategies" in (*groups[:1], name):
            return []  # what depends on it would be found wrong as well
        group.pop(name, None)
    try:
        Parameters.model_validate(rest)
    except ValidationError as second:
        known = {problem["loc"] for problem in error.errors()}
        return [_describe(problem) for problem in second.errors() if problem["loc"] not in known]
    return []


def _describe(problem: Any) -> str:
    """Return one line on one of pydantic's error records."""
    location = [str(part) for part in problem["loc"]]
    name = ".".join(location)
    if problem["type"] == "extra_forbidden" and name in RENAMED:
        return f"{name}: renamed to {RENAMED[name]}"
    if problem["type"] == "extra_forbidden" and name in REMOVED:
        return f"{name}: removed: {REMOVED[name]}"
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown" + _one_of(location[-1], _names_beside(problem["loc"]))
    message = problem["msg"].removeprefix("Value error, ")
    if not location:  # a check of the whole tree names its parameter itself
        return message
    if problem["type"] == "value_error":
        return f"{name}: {message}"
    near = ""
    if problem["type"] == "literal_error":
        allowed = re.findall("'(.*?)'", problem["ctx"]["expected"])
        near = did_you_mean(str(problem["input"]), allowed)
    return f"{name}: {message}, given {problem['input']!r}{near}"


def _one_of(given: str, allowed: list[str]) -> str:
    """Return a clause with the nearest spelling, if any, and what is possible."""
    return f"{did_you_mean(given, allowed)} (possible: {', '.join(sorted(allowed))})"


def _names_beside(location: tuple[int | str, ...]) -> list[str]:
    """Return the field names of the group in which an unknown name was given."""
    group: Any = Parameters
    for part in location[:-1]:
        if isinstance(group, type) and issubclass(group, Options):
            if part not in group.model_fields:
                continue  # pydantic names the member of a union here
            group = group.model_fields[str(part)].annotation
        else:  # a container: its last type argument is what it holds
            group = next((a for a in get_args(group)[::-1] if a is not ...), None)
    members = [a for a in (group, *get_args(group)) if hasattr(a, "model_fields")]
    return list(members[0].model_fields) if members else []  # of X | None, those of X
