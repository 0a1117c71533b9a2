"""From splits and a strategy to a trained, evaluated and registered classifier."""

from thawline.pipelines.finetune.pipeline import (
    create_evaluation,
    create_lr_search,
    create_model,
    create_registration,
    create_summary,
    create_training,
    create_transforms,
    create_views,
)

__all__ = [
    "create_evaluation",
    "create_lr_search",
    "create_model",
    "create_registration",
    "create_summary",
    "create_training",
    "create_transforms",
    "create_views",
]
