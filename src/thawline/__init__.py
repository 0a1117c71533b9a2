"""Fine-tuning of pretrained image classifiers as reproducible Kedro pipelines."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from thawline.api import finetune

__version__ = "0.2.0"
__all__ = ["finetune"]


def __getattr__(name: str) -> Any:
    """Return what Python code imports from here: the package itself imports nothing."""
    if name != "finetune":
        raise AttributeError(f"module 'thawline' has no attribute {name!r}")
    from thawline.api import finetune

    return finetune
