"""Options of what is done with a trained network, and the whole tree of parameters."""

from collections.abc import Iterator
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

from thawline.errors import alternatives
from thawline.options.dataset import (
    AugmentationOptions,
    DatasetOptions,
    ScreeningOptions,
    TransformOptions,
)
from thawline.options.training import (
    ActivationOptions,
    AutoOptions,
    EngineOptions,
    LrFindOptions,
    ModelOptions,
    Phase,
    Strategy,
    TrainingOptions,
)
from thawline.options.types import AUTO, MAX_SEED, Options, Seed, Tta
from thawline.options.use import (
    DriftOptions,
    ExportOptions,
    PredictOptions,
    RegistryOptions,
    ReviewOptions,
    ServingOptions,
)

# The result of a training depends on these groups, and on the images.
TRAINING_GROUPS = (
    "seed", "strategy", "strategies", "transforms", "augmentation", "model", "auto", "training",
)  # fmt: skip
AttributionMethod = Literal["grad_cam", "guided_grad_cam", "integrated_gradients"]
Words = Annotated[  # the command line passes a list as words
    tuple[str, ...], BeforeValidator(lambda text: text.split() if isinstance(text, str) else text)
]


class EvaluationOptions(Options):
    """How the test split is evaluated."""

    top_k: PositiveInt = 5
    batch_size: PositiveInt = 16
    tta: Tta = "none"


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


class Parameters(Options):
    """The whole tree of parameters."""

    seed: Seed = 0
    strategy: str = AUTO
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
    serving: ServingOptions = ServingOptions()
    review: ReviewOptions = ReviewOptions()
    drift: DriftOptions = DriftOptions()
    registry: RegistryOptions = RegistryOptions()
    engine: EngineOptions = EngineOptions()
    predict: PredictOptions = PredictOptions()
    export: ExportOptions = ExportOptions()
    sweep: SweepOptions = SweepOptions()

    @model_validator(mode="after")
    def _check_groups_fit_together(self) -> Self:
        problems, known = [], [*self.strategies, AUTO]
        compared = [("compare.strategies", name) for name in self.compare.strategies]
        for parameter, name in [("strategy", self.strategy), *compared]:
            if name not in known:
                problems.append(
                    f"{parameter}: '{name}' is not a strategy{alternatives(name, known)}"
                )
        if self.strategy == AUTO:
            if self.model.head in ("builtin", "mlp"):
                problems.append(
                    f"model.head: {self.model.head} needs a strategy that trains it, such as full;"
                    f" {AUTO} fits linear heads"
                )
            if self.training.epochs == 0:
                problems.append(
                    f"training.epochs: 0 leaves the strategy {AUTO} nothing to choose by; name one"
                )
        if AUTO in self.strategies:
            problems.append(
                f"strategies.{AUTO}: this name is reserved for the choice by data; rename it"
            )
        if self.seed + self.compare.num_seeds > MAX_SEED + 1:
            problems.append(
                f"compare.num_seeds: {self.compare.num_seeds} seeds from {self.seed} exceed the"
                f" largest seed, {MAX_SEED}; lower seed or compare.num_seeds"
            )
        if self.evaluation.tta == "flip" and not self.transforms.horizontal_flip:
            problems.append(
                "evaluation.tta: flip mirrors images, but transforms.horizontal_flip is 0, so left"
                " and right differ; set evaluation.tta to five_crop or none"
            )
        needing_logits = [
            ("training.label_smoothing", self.training.label_smoothing),
            ("augmentation.mixup", self.augmentation.mixup),
            ("augmentation.cutmix", self.augmentation.cutmix),
        ]
        problems += [
            f"{name}: {value:g} needs logits, but model.log_probabilities is true; set one of the"
            " two to its default"
            for name, value in needing_logits
            if value and self.model.log_probabilities
        ]
        if problems:
            raise ValueError("\n  ".join(problems))
        return self

    @property
    def data_seed(self) -> int:
        """The seed of splits and random views."""
        return self.seed if self.dataset.seed is None else self.dataset.seed

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of the strategy."""
        return self.strategies[self.strategy].phases

    def with_strategy(self, name: str) -> Self:
        """Return these parameters with a strategy, and what it and `training` say of its phases."""
        strategy = self.strategies[name]
        changes = strategy.model_dump(include={"weights", "head"}, exclude_none=True)
        model = ModelOptions.model_validate(self.model.model_dump() | changes)
        phases = tuple(self._with_training(phase) for phase in strategy.phases)
        strategies = self.strategies | {name: strategy.model_copy(update={"phases": phases})}
        return self.model_copy(update={"strategy": name, "model": model, "strategies": strategies})

    def _with_training(self, phase: Phase) -> Phase:
        """Return a phase with `training.epochs` and `training.lr`, if they are given."""
        update = self.training.model_dump(include={"epochs", "lr"}, exclude_none=True)
        if phase.optimizer == "lbfgs":  # one epoch or none, and no rate
            update = {"epochs": min(1, update.get("epochs", 1))}
        return phase.model_copy(update=update)

    def for_results(self) -> dict[str, Any]:
        """Return by dotted name all values that affect test results, but not the strategies."""
        groups = {*TRAINING_GROUPS, "dataset", "screening", "evaluation"} - {"strategies"}
        return dict(flatten(self.model_dump(mode="json", include=groups)))

    def changed(self) -> dict[str, Any]:
        """Return those of them that are not the default."""
        defaults = Parameters(strategies=self.strategies).for_results()
        return {n: value for n, value in self.for_results().items() if value != defaults.get(n)}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of every scalar; a list of scalars is one value."""
    if isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        tree = dict(enumerate(tree))
    if not tree or not isinstance(tree, dict):
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
