"""YAML files that hold mappings: read strictly, changed by `--set`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from spptransfer.errors import ConfigError


def read_mapping(
    path: str | os.PathLike[str], schema: type[BaseModel], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a YAML file that holds a mapping."""
    try:
        values = yaml.load(Path(path).read_text("utf-8-sig"), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the pipeline file '{path}': {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is no YAML file: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' is no pipeline file: it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' must hold {_wanted_keys(schema)}")
    for assignment in overrides:
        values = override(values, assignment)
    return values


def override(values: Mapping[str, Any], assignment: str) -> dict[str, Any]:
    """Copy nested mappings with the value replaced that ``section.key=value`` names.

    Examples
    --------
    >>> override({"training": {"epochs": 3, "batch": 4}}, "training.epochs=9")
    {'training': {'epochs': 9, 'batch': 4}}
    """
    name, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--set {assignment}: expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {text!r} is no YAML value") from error
    except RecursionError as error:
        raise ConfigError(f"--set {name}: the value is nested too deeply") from error
    return replace(values, name, value, f"--set {assignment}")


def replace(values: Mapping[str, Any], name: str, value: Any, what: str) -> dict[str, Any]:
    """Copy nested mappings with one value replaced."""
    keys = name.strip().split(".")
    if not all(keys):
        raise ConfigError(f"{what}: expected section.key=value")
    changed = dict(values)
    section = changed
    for key in keys[:-1]:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[key]
    section[keys[-1]] = value
    return changed


def _wanted_keys(schema: type[BaseModel]) -> str:
    """Keys that a file needs, and those that it may have."""
    fields = schema.model_fields
    needed = [key for key, field in fields.items() if field.is_required()] or list(fields)
    others = [key for key in fields if key not in needed]
    may = f", and may hold {', '.join(others)}" if others else ""
    return f"the {'key' if len(needed) == 1 else 'keys'} {', '.join(needed)}{may}"


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe subset, in which no key may occur twice."""


def _mapping_without_duplicates(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                problem=f"key '{key}' occurs twice", problem_mark=node.start_mark
            )
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates
)
