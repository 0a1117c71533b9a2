"""Options for the network: backbone, weights and head."""

from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, field_validator, model_validator

from thawline.options.types import Options, Probability


class ModelOptions(Options):
    """The backbone, its weights and the new head."""

    backbone: str = Field("timm/tf_efficientnet_lite0", min_length=1)
    weights: str = Field("default", min_length=1)
    backbone_kwargs: dict[str, Any] = Field({})
    trust_pickle: bool = False
    trust_code: bool = False
    min_loaded: Probability = 0.95
    head: Literal["linear", "mlp", "builtin"] = "linear"
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
                " library. Set model.backbone=package.module:Factory, or model.head=linear or mlp"
            )
        if self.head_dropout is not None:
            raise ValueError(
                f"head_dropout: {self.head_dropout:g} does not apply to a builtin head. Set it to"
                " null, and pass the dropout to your network through model.backbone_kwargs"
            )
        return self
