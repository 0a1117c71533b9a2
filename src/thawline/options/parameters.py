"""The whole tree of parameters, and the checks of one group against another."""

from collections.abc import Iterator
from typing import Any, Self

from pydantic import model_validator

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
    Strategy,
    TrainingOptions,
)
from thawline.options.types import AUTO, MAX_SEED, Options, Seed
from thawline.options.usage import (
    CompareOptions,
    EvaluationOptions,
    ExplainOptions,
    ExportOptions,
    PredictOptions,
    RegistryOptions,
    SweepOptions,
)

# The result of a training depends on these groups, and on the images.
TRAINING_GROUPS = (
    "seed", "strategy", "strategies", "transforms", "augmentation", "model", "auto", "training",
)  # fmt: skip


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
    engine: EngineOptions = EngineOptions()
    predict: PredictOptions = PredictOptions()
    export: ExportOptions = ExportOptions()
    sweep: SweepOptions = SweepOptions()

    @model_validator(mode="after")
    def _check_groups_fit_together(self) -> Self:
        if problems := [*self._strategy_problems(), *self._loss_problems()]:
            raise ValueError("\n  ".join(problems))
        return self

    def _strategy_problems(self) -> Iterator[str]:
        """Yield a line for each strategy or seed that cannot be used."""
        known = [*self.strategies, AUTO]
        compared = [("compare.strategies", name) for name in self.compare.strategies]
        for parameter, name in [("strategy", self.strategy), *compared]:
            if name not in known:
                yield f"{parameter}: '{name}' is not a strategy{alternatives(name, known)}"
        if AUTO in self.strategies:
            yield f"strategies.{AUTO}: this name is reserved for the choice by data; rename it"
        if self.seed + self.compare.num_seeds > MAX_SEED + 1:
            yield (
                f"compare.num_seeds: {self.compare.num_seeds} seeds from {self.seed} exceed the"
                f" largest seed, {MAX_SEED}; lower seed or compare.num_seeds"
            )

    def _loss_problems(self) -> Iterator[str]:
        """Yield a line for each option that negative log likelihood does not support."""
        if not self.model.log_probabilities:
            return
        needing_logits = [
            ("training.label_smoothing", self.training.label_smoothing),
            ("augmentation.mixup", self.augmentation.mixup),
            ("augmentation.cutmix", self.augmentation.cutmix),
        ]
        for name, value in needing_logits:
            if value:
                yield (
                    f"{name}: {value:g} needs logits, but model.log_probabilities is true; set one"
                    " of the two to its default"
                )

    @property
    def data_seed(self) -> int:
        """The seed of splits and random views."""
        return self.seed if self.dataset.seed is None else self.dataset.seed

    def changed(self) -> dict[str, Any]:
        """Return by dotted name all values that affect test results and are not the default."""
        groups = {*TRAINING_GROUPS, "dataset", "screening", "evaluation"} - {"strategies"}
        values, defaults = (
            dict(flatten(parameters.model_dump(mode="json", include=groups)))
            for parameters in (self, Parameters(strategies=self.strategies))
        )
        return {name: value for name, value in values.items() if value != defaults.get(name)}


def flatten(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted name and value of every scalar; a list of scalars is one value."""
    if isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        tree = dict(enumerate(tree))
    if not tree or not isinstance(tree, dict):
        yield prefix, tree
        return
    for name, value in tree.items():
        yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
