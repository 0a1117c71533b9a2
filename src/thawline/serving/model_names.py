"""Name registered models, and name them and their classes in messages."""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from thawline.data.packaged_datasets import LIBRARIES
from thawline.data.sources import TABLES

MAX_NAMES_IN_MESSAGE = 5


def model_name(root: str, class_names: Sequence[str]) -> str:
    """Return the default name of a registered model: the name of its data set, a hash of classes.

    So models with other classes never share a name, nor a champion.
    """
    library, _, name = root.partition(":")
    if library not in LIBRARIES:
        path = PurePath(root)
        name = path.stem if path.suffix.lower() in TABLES else path.name
    readable = re.sub(r"\W+", "-", name).strip("-") or "images"
    digest = hashlib.sha256("\n".join(sorted(class_names)).encode()).hexdigest()
    return f"{readable}-{digest[:6]}"


def next_prediction(result: Mapping[str, Any], class_names: Collection[str]) -> str:
    """Return a sentence on which model `kedro run --pipeline=predict` uses after a registration."""
    classes = list_classes(class_names)
    if "registered_version" not in result:
        return (
            "This model is not registered: kedro run --pipeline=predict uses it with"
            f" --params=predict.model=latest ({classes})."
        )
    name, version = result["registered_model"], result["registered_version"]
    command, champion = "kedro run --pipeline=predict", result["champion_version"]
    if champion == version:
        return f"{command} now uses this model, version {version} of '{name}' ({classes})."
    return (
        f"{command} uses version {champion} of '{name}', the champion; this model is version"
        f" {version}: --params=predict.model={version} ({classes})."
    )


def list_classes(names: Collection[str]) -> str:
    """Return the number of classes and the first names."""
    named = sorted(names)[:MAX_NAMES_IN_MESSAGE]
    more = ", …" * (len(names) > len(named))
    return f"{len(names)} classes: {', '.join(named)}{more}"
