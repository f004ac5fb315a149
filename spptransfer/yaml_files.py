"""YAML files with a schema: read strictly, changed by `--set`, their mistakes told in one line."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from spptransfer.errors import ConfigError, suggestion

_SHOWN_CHARACTERS = 80


def read_mapping(
    path: str | os.PathLike[str], schema: type[BaseModel], overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Parameters
    ----------
    path : path-like
        The file.
    schema : type
        The model that it will be checked against, for the message where it has no keys.
    overrides : sequence of str
        ``section.key=value``, each replacing one value; values are YAML too.

    Returns
    -------
    dict
        Not yet checked against a schema.

    Raises
    ------
    ConfigError
        If the file cannot be read or is no YAML mapping, or an override is no assignment.
    """
    try:
        values = yaml.load(Path(path).read_text("utf-8"), _StrictLoader)
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

    Raises
    ------
    ConfigError
        If it is no assignment, or the value no YAML.

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
    """Copy nested mappings with one value replaced.

    Parameters
    ----------
    values : mapping
        Sections of keys and values.
    name : str
        ``section.key``.
    value : object
        The new value.
    what : str
        What messages call the replacement.

    Returns
    -------
    dict

    Raises
    ------
    ConfigError
        If the name is none.
    """
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


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """One line for the first mistake; unknown keys come before what they leave missing.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    schema : type
        The model that was checked, which knows the allowed keys.

    Returns
    -------
    str
        Names the key, and what is allowed.
    """
    mistake = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    where = [repr(str(part))[1:-1] for part in mistake["loc"]]  # a key may hold line breaks
    name = ".".join(where)
    if mistake["type"] == "extra_forbidden":
        return f"unknown key '{name}'; {suggestion(where[-1], _fields(schema, where[:-1]))}"
    if mistake["type"] == "missing":
        return f"'{name}' is missing"
    prefix = f"{name}: " if where else ""
    return f"{prefix}{_expectation(mistake)}{_given(mistake)}"


def _wanted_keys(schema: type[BaseModel]) -> str:
    """Keys that a file needs, and those that it may have."""
    fields = schema.model_fields
    needed = [key for key, field in fields.items() if field.is_required()] or list(fields)
    others = [key for key in fields if key not in needed]
    may = f", and may hold {', '.join(others)}" if others else ""
    return f"the {'key' if len(needed) == 1 else 'keys'} {', '.join(needed)}{may}"


def _given(mistake: Mapping[str, Any]) -> str:
    """What was there instead, unless it is long or a section whose keys contradict each other."""
    value = mistake["input"]
    contradiction = mistake["type"] == "value_error" and isinstance(value, Mapping)
    hidden = contradiction or len(repr(value)) > _SHOWN_CHARACTERS
    return "" if hidden else f", got {value!r}"


def _fields(schema: type[BaseModel], section: Sequence[str]) -> list[str]:
    """Keys of a section, which a list of sections may hold."""
    model: Any = schema
    for name in section:
        if not name.isdecimal():
            model = _section_in(model.model_fields[name].annotation)
    return list(model.model_fields)


def _section_in(annotation: Any) -> Any:
    """The section that a type such as ``tuple[Row, ...]`` or ``Section | None`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(inner) for inner in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _expectation(mistake: Mapping[str, Any]) -> str:
    """What the value should have been, in the words of YAML instead of Python."""
    if mistake["type"] == "less_than_equal":
        return f"must be at most {mistake['ctx']['le']:g}"  # 1e+20, not a 1 and 20 zeros
    ours = {
        "model_type": "must be a mapping of keys",
        "tuple_type": "must be a list",
        "too_short": "must not be empty",
        "string_type": "must be a string",
        "string_too_short": "must not be empty",
        "dict_type": "must be a mapping",
    }
    message: str = ours.get(mistake["type"], mistake["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


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
