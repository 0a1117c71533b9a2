"""Write down what users and other code name: pipelines, catalog entries, parameters, commands.

`python -m golden.structure` in tests/ writes it anew. Whoever does so lists in the CHANGELOG what
users have to change.
"""

import json
import os
from pathlib import Path
from typing import Any

import click
from kedro.io import CatalogConfigResolver

from thawline.cli.main import main
from thawline.hooks.configuration import read_configuration
from thawline.options import flatten
from thawline.pipeline_registry import register_pipelines

ROOT = Path(__file__).parents[2]
STRUCTURE = Path(__file__).with_name("structure.json")


def describe_structure() -> dict[str, Any]:
    """Return all names, with what belongs to each, as plain data."""
    configuration = read_configuration(ROOT, "base")
    return {
        "pipelines": describe_pipelines(),
        "catalog": describe_catalog(configuration["catalog"]),
        "parameters": dict(sorted(flatten(configuration["parameters"]))),
        "commands": describe_commands(),
    }


def describe_pipelines() -> dict[str, dict[str, str]]:
    """Return the nodes of each pipeline, in the order in which they run, with what they pass on."""
    return {
        name: {
            node.name: f"{', '.join(node.inputs)} -> {', '.join(node.outputs)}"
            for node in pipeline.nodes
        }
        for name, pipeline in register_pipelines().items()
        if name != "__default__"
    }


def describe_catalog(entries: dict[str, Any]) -> dict[str, str]:
    """Return type and file of each entry that a pipeline uses, listed or made by a factory."""
    resolver = CatalogConfigResolver(entries)
    names = {name for pipeline in register_pipelines().values() for name in pipeline.datasets()}
    described = {}
    for name in sorted(names):
        entry = entries.get(name) or resolver.resolve_pattern(name)
        if name in entries or not entry["type"].endswith("MemoryDataset"):
            versioned = " (versioned)" * bool(entry.get("versioned"))
            described[name] = f"{entry['type']} {entry.get('filepath', '')}{versioned}"
    return described


def describe_commands() -> dict[str, list[str]]:
    """Return arguments and options of each command of `thawline`."""
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in main.list_commands(context)}
    return {
        name: [" ".join(parameter.opts) for parameter in command.params]
        for name, command in commands.items()
        if command
    }


if __name__ == "__main__":
    os.environ.pop("THAWLINE_SWEEP_STORAGE", None)
    text = json.dumps(describe_structure(), indent=1, ensure_ascii=False)
    STRUCTURE.write_text(text + "\n", encoding="utf-8")
