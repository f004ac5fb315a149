"""Sections of a pipeline file: pydantic models whose mistakes are told in one line."""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

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

_SHOWN_CHARACTERS = 80

Model = TypeVar("Model", bound=BaseModel)
Schema = type[BaseModel]

PositiveInt = Annotated[int, Field(ge=1, strict=True)]
CountFromZero = Annotated[int, Field(ge=0, strict=True)]


def _as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


PathText = Annotated[str, BeforeValidator(_as_text)]


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
    title = "".join(part.capitalize() for part in name.replace("_", "-").split("-"))
    bases = (base,) if options is None else (options, base)
    literal = cast(Any, Literal)[name]
    section = create_model(title + base.__name__, __base__=bases, name=(literal, ...), **fields)
    return cast(type[Model], section)


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
    kind, field = mistake["type"], section.model_fields.get(keys[-1]) if keys else None
    if kind == "extra_forbidden":
        return f"unknown key '{name}'; {suggestion(keys[-1], section.model_fields)}"
    if kind == "union_tag_not_found":
        return f"'{name}.name' is missing; {suggestion('', choices)}"
    if kind == "union_tag_invalid":
        tag = mistake["ctx"]["tag"]
        return f"{name}.name: {tag!r} is unknown; {suggestion(tag, choices)}"
    nothing = mistake["input"] is None and field is not None and field.is_required()
    if kind == "missing" or nothing:
        return (
            f"'{name}' is missing{f': {field.description}' if field and field.description else ''}"
        )
    prefix = f"{name}: " if name else ""
    return f"{prefix}{_expectation(mistake)}{_given(mistake)}"


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
            marks = [mark for mark in field.metadata if isinstance(mark, ByName)]
            choices = marks[0].sections() if marks else {}
            section = _section_in(field.annotation) or section
    return keys, section, choices


def _section_in(annotation: Any) -> Schema | None:
    """Find the section that a type such as ``tuple[Row, ...]`` or ``Section | None`` holds."""
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
        "model_attributes_type": "must be a mapping of keys",
        "tuple_type": "must be a list",
        "too_short": "must not be empty",
        "string_type": "must be a string",
        "string_too_short": "must not be empty",
        "dict_type": "must be a mapping",
    }
    message: str = ours.get(mistake["type"], mistake["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _given(mistake: Mapping[str, Any]) -> str:
    """What was there instead, unless it is long or a section whose keys contradict each other."""
    value = mistake["input"]
    contradiction = mistake["type"] == "value_error" and isinstance(value, Mapping)
    hidden = contradiction or len(repr(value)) > _SHOWN_CHARACTERS
    return "" if hidden else f", got {value!r}"
