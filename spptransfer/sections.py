"""Sections of YAML files: read strictly, changed by `--set`, their mistakes told in one line."""

from __future__ import annotations

import functools
import operator
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    ValidationError,
    create_model,
)

from spptransfer.errors import ConfigError, suggestion
from spptransfer.files import expand_path, read_text

_SHOWN_CHARACTERS = 80

Model = TypeVar("Model", bound=BaseModel)
Schema = type[BaseModel]

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
CountFromZero = Annotated[int, Field(ge=0, strict=True)]


def _expanded(path: Any) -> Any:
    return str(expand_path(path)) if path and isinstance(path, str | os.PathLike) else path


PathText = Annotated[str, BeforeValidator(_expanded)]


class Section(BaseModel):
    """Keys and values of which every key is known, and which stay as they were checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class ByName:
    """Mark a field whose key `name` chooses one of several sections: a discriminated union.

    The sections are asked for when a model that has such a field is built, or built again.
    """

    sections: Callable[[], Mapping[str, Schema]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        union: Any = functools.reduce(operator.or_, self.sections().values())
        return handler.generate_schema(Annotated[union, Field(discriminator="name")])


def named_section(
    base: type[Model], name: str, options: Schema | None = None, fields: Mapping[str, Any] = {}
) -> type[Model]:
    """Make the section that `name` chooses in a union: that of the dataset ``csv``, say.

    Its keys are those of `base`, of `options`, which go before, and `fields`.
    """
    title = name.replace("_", "-").title().replace("-", "")
    bases = (base,) if options is None else (options, base)
    literal = cast(Any, Literal)[name]
    section = create_model(title + base.__name__, __base__=bases, name=(literal, ...), **fields)
    return cast(type[Model], section)


# ---- checking ----


def check(schema: type[Model], values: Mapping[str, Any], where: str = "") -> Model:
    """Check a mapping against a schema.

    Examples
    --------
    >>> class Bread(Section):
    ...     slices: int = 3
    >>> check(Bread, {"slcies": 2}, "toast")
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: unknown key 'toast.slcies'; did you mean 'slices'? ...
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        # An unknown key comes before what it leaves missing.
        mistake = min(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
        raise ConfigError(_explain(mistake, schema, where)) from error


def _explain(mistake: Mapping[str, Any], schema: Schema, where: str) -> str:
    """Say in one line what is wrong with which key."""
    keys, section, choices = _locate(schema, mistake["loc"])
    name = ".".join(repr(key)[1:-1] for key in ([where] if where else []) + keys)  # no line breaks
    kind, given = mistake["type"], mistake["input"]
    field = section.model_fields.get(keys[-1]) if keys else None
    if kind == "extra_forbidden":
        return f"unknown key '{name}'; {_nearest_key(keys[-1], section.model_fields, schema)}"
    if kind == "union_tag_not_found":
        known = dict.fromkeys(key for each in choices.values() for key in each.model_fields)
        for key in set(map(str, given)).difference(known):
            return f"unknown key '{name}.{repr(key)[1:-1]}'; {suggestion(key, known)}"
        return f"required key '{name}.name' is missing; {suggestion('', choices)}"
    if kind == "union_tag_invalid":
        tag = mistake["ctx"]["tag"]
        return f"{name}.name: {tag!r} is unknown; {suggestion(tag, choices)}"
    required = field is not None and field.is_required()
    if kind == "missing" or (given is None and required):
        about = f": {field.description}" if field and field.description else ""
        return f"required key '{name}' is missing{about}"
    # A long value is not repeated, nor a section whose keys contradict each other.
    hidden = kind == "value_error" and isinstance(given, Mapping)
    shown = "" if hidden or len(repr(given)) > _SHOWN_CHARACTERS else f", got {given!r}"
    return f"{f'{name}: ' if name else ''}{_expectation(mistake)}{shown}"


def _nearest_key(key: str, allowed: Mapping[str, Any], schema: Schema) -> str:
    """Suggest a key of the same section, or else one of the same name in another."""
    told = suggestion(key, allowed)
    elsewhere = [name for name in _all_keys(schema) if name.rpartition(".")[2] == key]
    if elsewhere and told.startswith("allowed"):
        return f"did you mean '{elsewhere[0]}'? {told}"
    return told


def _all_keys(schema: Schema, prefix: str = "") -> Iterator[str]:
    """Go through the keys of a schema and of the sections in it, those of any chosen section."""
    for key, field in schema.model_fields.items():
        yield prefix + key
        choices, inner = _choices(field), _section_in(field.annotation)
        if choices:
            common = set.intersection(*(set(each.model_fields) for each in choices.values()))
            yield from (f"{prefix}{key}.{name}" for name in sorted(common))
        elif inner:
            yield from _all_keys(inner, f"{prefix}{key}.")


def _choices(field: Any) -> Mapping[str, Schema]:
    """Return the sections that a field's key `name` chooses among."""
    marks = [mark for mark in field.metadata if isinstance(mark, ByName)]
    return marks[0].sections() if marks else {}


def _locate(
    schema: Schema, location: Sequence[int | str]
) -> tuple[list[str], Schema, Mapping[str, Schema]]:
    """Return the keys that lead to a mistake, its section, and the sections to choose from."""
    keys: list[str] = []
    section: Schema = schema
    choices: Mapping[str, Schema] = {}
    for part in location:
        if part in choices:  # pydantic puts the name of the chosen section between the keys
            section, choices = choices[str(part)], {}
            continue
        keys.append(str(part))
        choices = {}
        if field := section.model_fields.get(str(part)):
            choices, section = _choices(field), _section_in(field.annotation) or section
    return keys, section, choices


def _section_in(annotation: Any) -> Schema | None:
    """Find the section that a type such as ``tuple[Row, ...]`` or ``Section | None`` holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = map(_section_in, get_args(annotation))
    return next((section for section in found if section is not None), None)


def _expectation(mistake: Mapping[str, Any]) -> str:
    """Say what the value should have been, in the words of YAML instead of Python."""
    if mistake["type"] == "less_than_equal":
        return f"must be at most {mistake['ctx']['le']:g}"  # 1e+20, not a 1 and 20 zeros
    ours = {
        "model_type": "must be a mapping of keys",
        "model_attributes_type": "must be a mapping of keys",
        "tuple_type": "must be a list",
        "too_short": "must not be empty",
        "string_type": "must be a string",
        "string_too_short": "must not be empty",
        "dict_type": "must be a mapping",
    }
    message: str = ours.get(mistake["type"], mistake["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


# ---- reading ----


def shipped() -> dict[str, Path]:
    """Return the pipeline files of this package by name: in it, or beside it in a checkout."""
    package = Path(__file__).parent
    for folder in (package / "pipelines", package.parent / "pipelines"):
        if files := sorted(folder.glob("*.yaml")):
            return {file.stem: file for file in files}
    return {}


def parse_yaml(text: str) -> Any:
    """Parse YAML's safe subset, with the numbers and words of YAML 1.2.

    Examples
    --------
    >>> parse_yaml("{no: yes, size: 010}")
    {'no': 'yes', 'size': 10}
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"no YAML: {error}") from error


def read_mapping(
    path: str | os.PathLike[str], schema: Schema, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, or a shipped one, and replace values in it."""
    file = Path(path)
    if not file.is_file():
        file = shipped().get(os.fspath(path), file)
    try:
        values = yaml.load(read_text(file), _Loader)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError) and file.name == os.fspath(path)
        hint = f"; of those shipped: {suggestion(file.stem, shipped())}" if missing else ""
        raise ConfigError(
            f"cannot read the pipeline file '{path}': {error.strerror}{hint}"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"'{path}' is no YAML file: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise ConfigError(f"'{path}' is no pipeline file: it is nested too deeply") from error
    if not isinstance(values, dict):
        fields = schema.model_fields
        needed = [key for key, field in fields.items() if field.is_required()] or list(fields)
        others = [key for key in fields if key not in needed]
        may = f", and may hold {', '.join(others)}" if others else ""
        keys = f"{'key' if len(needed) == 1 else 'keys'} {', '.join(needed)}{may}"
        raise ConfigError(f"'{path}' must hold the {keys}")
    return override(values, overrides, schema)


def override(
    values: Mapping[str, Any], assignments: Sequence[str], schema: Schema = BaseModel
) -> dict[str, Any]:
    """Copy nested mappings with the values replaced that ``section.key=value`` names.

    Where the schema wants a string, or a list of them, the text is one as it is, as a shell hands
    it on; elsewhere, and between brackets, it is a value in YAML.

    Examples
    --------
    >>> override({"training": {"epochs": 3, "batch": 4}}, ["training.epochs=9"])
    {'training': {'epochs': 9, 'batch': 4}}
    """
    read, given = dict(values), []
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected section.key=value")
        try:
            value, problem = yaml.load(text, _Loader), ""
        except (yaml.YAMLError, ValueError):
            value, problem = text, f"--set {name}: {text!r} is no YAML value"
        except RecursionError:
            value, problem = text, f"--set {name}: the value is nested too deeply"
        read = replace(read, name, value, f"--set {assignment}")
        given.append((name, text, value, problem))
    changed = dict(values)
    for name, text, value, problem in given:
        kinds = _kinds_at(schema, name.strip().split("."), read) - {type(None)}
        is_list = kinds == {(str,)} and text.lstrip().startswith("[")
        if kinds in ({str}, {(str,)}) and text != "null" and not is_list:
            value = text
        elif problem:
            raise ConfigError(problem)
        elif is_list:
            value = yaml.load(text, _TextLoader)
        changed = replace(changed, name, value, "--set")
    return changed


def _kinds_at(schema: Schema, keys: Sequence[str], values: Any) -> set[Any]:
    """Return the types that a schema takes at a place; none where it does not know the place."""
    for key in keys[:-1]:
        field = schema.model_fields.get(key)
        values = values.get(key) if isinstance(values, Mapping) else None
        if field is None:
            return set()
        name = values.get("name") if isinstance(values, Mapping) else None
        inner = _choices(field).get(str(name)) or _section_in(field.annotation)
        if inner is None:
            return set()
        schema = inner
    field = schema.model_fields.get(keys[-1])
    return set() if field is None else set(_kinds(field.annotation))


def _kinds(annotation: Any) -> Iterator[Any]:
    """Go through the types that a field may have; those of a list's items are in a tuple."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        yield from map(type, inside)
    elif origin is Annotated:
        yield from _kinds(inside[0])
    elif origin in (Union, UnionType):
        yield from (kind for each in inside for kind in _kinds(each))
    elif origin is tuple:
        yield tuple({kind for each in inside if each is not Ellipsis for kind in _kinds(each)})
    else:
        yield annotation


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


class _Loader(yaml.SafeLoader):
    """YAML's safe subset with the numbers and words of YAML 1.2, in which no key occurs twice."""


class _TextLoader(_Loader):
    """The same where every word is text."""


def _mapping_without_duplicates(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    for key in keys:
        if keys.count(key) > 1:
            raise yaml.constructor.ConstructorError(
                problem=f"key '{key}' occurs twice", problem_mark=node.start_mark
            )
    return loader.construct_mapping(node, deep=True)


def _integer(loader: _Loader, node: yaml.ScalarNode) -> int:
    text = node.value
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_TextLoader.yaml_implicit_resolvers = {}
_Loader.yaml_implicit_resolvers = {}
# The core schema of YAML 1.2: 010 is ten, 1e-1 is a number, 1:30, 1_000 and 2024-01-05 are text.
for _tag, _pattern in {
    "merge": "<<",
    "null": "(~|null|Null|NULL)?",
    "bool": "true|True|TRUE|false|False|FALSE",
    "int": "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"({_pattern})\Z"), None)
_Loader.add_constructor("tag:yaml.org,2002:int", _integer)
_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping_without_duplicates)
