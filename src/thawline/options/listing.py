"""List all parameters with their types, defaults and meanings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from thawline.options.parameters import Parameters

LINE = re.compile(r"(?P<indent> *)(?P<name>\w+):(?P<default>[^#]*)(?:# *(?P<meaning>.*))?")
BOUNDS = {
    "minimum": "≥ {}", "exclusiveMinimum": "> {}", "maximum": "≤ {}", "exclusiveMaximum": "< {}",
}  # fmt: skip
NAMES = {"integer": "int", "number": "float", "boolean": "true | false", "string": "text"}


class Parameter(NamedTuple):
    """A line of the configuration."""

    name: str  # dotted
    type: str  # with its bounds, or all values
    default: str
    meaning: str


def list_parameters(folder: Path) -> Iterator[Parameter]:
    """Yield every parameter of the files in a folder of the configuration, but no strategies."""
    schema = Parameters.model_json_schema()
    for file in sorted(folder.glob("parameters*.yml")):
        path: list[str] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            if not (found := LINE.fullmatch(line)):
                continue
            path = [*path[: len(found["indent"]) // 2], found["name"]]
            own = _find(schema, path)
            if own is not None and (default := found["default"].strip()):
                yield Parameter(".".join(path), _kind(schema, own), default, found["meaning"] or "")


def _find(schema: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """Return the schema of a parameter, None if it is no field, as in a sweep's space."""
    own: dict[str, Any] | None = schema
    for name in path:
        own = _resolve(schema, own or {}).get("properties", {}).get(name)
    return own


def _resolve(schema: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    reference: str = own.get("$ref", "")
    return schema["$defs"][reference.rpartition("/")[2]] if reference else own


def _kind(schema: dict[str, Any], own: dict[str, Any]) -> str:
    """Return type and bounds, or all values, of a parameter."""
    own = _resolve(schema, own)
    if "enum" in own or "const" in own:
        return " | ".join(map(str, own.get("enum", [own.get("const")])))
    if parts := own.get("anyOf", own.get("oneOf")):
        return " | ".join(dict.fromkeys(_kind(schema, part) for part in parts))
    bounds = [text.format(own[name]) for name, text in BOUNDS.items() if name in own]
    kind = str(own.get("type", "any"))
    if kind == "array":
        kind = f"list of {_kind(schema, own.get('items', {}))}"
    return " ".join([NAMES.get(kind, kind), *bounds])
