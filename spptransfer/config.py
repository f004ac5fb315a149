"""The pipeline file: its schema, how it is read, and how its mistakes are told."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError

from spptransfer.errors import ConfigError, suggestion
from spptransfer.images import View
from spptransfer.pyramid.bins import Pooling
from spptransfer.spec import Storage

NormalizationStep = Literal["l2", "l2_block", "signed_sqrt", "standardize"]
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


def _class_weight(value: Any) -> Any:
    allowed = value is None or value == "balanced"
    if isinstance(value, Mapping):
        weights = list(value.values())
        numbers = all(isinstance(w, (int, float)) and 0 < w < float("inf") for w in weights)
        allowed = set(value) <= {1, -1} and numbers
    if not allowed:
        raise ValueError(
            "must be 'balanced' or weights of positives and negatives, as {1: 2, -1: 1}"
        )
    return value


ClassWeight = Annotated[
    Literal["balanced"] | dict[int, float] | None,
    PlainValidator(
        _class_weight, json_schema_input_type=Literal["balanced"] | dict[int, float] | None
    ),
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetSection(_Section):
    """Which images: a dataset of `spptransfer.datasets`, and its options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="caltech101, voc2007, folder, csv or demo")
    root: str | None = Field(None, description="folder (or CSV file); looked for if absent")

    def options(self) -> dict[str, Any]:
        """Options of this kind of dataset, checked by `open_dataset`."""
        return dict(self.model_extra or {})


class FeaturesSection(_Section):
    """How an image becomes a vector."""

    backbone: str = Field("alexnet", description="a name that `spptransfer backbones` lists")
    weights: str = Field("imagenet", description="a catalogue name, a file, or random:SEED")
    layer: str = Field("spp", description="a layer of the backbone")
    levels: tuple[PositiveInt, ...] = Field(
        (6, 3, 2, 1), min_length=1, description="n x n grids of the pyramid"
    )
    pooling: Pooling = Field("max", description="what is taken in a bin")
    scales: Annotated[tuple[PositiveInt, ...], BeforeValidator(_listed), Field(min_length=1)] = (
        Field((224,), description="lengths of the smaller side in pixels")
    )
    view: View = Field("full", description="the whole image, its centre, or warped to a square")
    combine: Literal["concat", "mean", "max"] = Field(
        "concat", description="what becomes of several scales"
    )
    flip: bool = Field(False, description="average with the mirrored image")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="arithmetic of the backbone; auto is float32"
    )
    storage: Storage = Field("float32", description="type of the numbers in the cache")


class ClassifierSection(_Section):
    """How vectors become classes."""

    normalize: tuple[NormalizationStep, ...] = Field(("l2",), description="applied in order")
    loss: Literal["squared_hinge", "hinge"] = "squared_hinge"
    C: (
        Annotated[tuple[PositiveFloat, ...], BeforeValidator(_listed), Field(min_length=1)] | None
    ) = Field(None, description="values to choose from; one value is taken as it is")
    class_weight: ClassWeight = Field(
        None, description="balanced, or weights of every class's positives (1) and negatives (-1)"
    )
    solver: Literal["spptransfer", "scikit-learn"] = Field(
        "spptransfer", description="LinearSVM of this package, or scikit-learn's LinearSVC"
    )


class ProtocolSection(_Section):
    """What makes the number comparable: a protocol of `spptransfer.protocols`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str = Field(description="caltech101, voc2007, folder, csv, ...")

    def settings(self) -> dict[str, Any]:
        """Settings of the protocol, checked by `Protocol.settings`."""
        return dict(self.model_extra or {})


class Pipeline(_Section):
    """One experiment: dataset, features, classifier, protocol.

    Examples
    --------
    >>> pipeline = parse_pipeline({"dataset": {"name": "demo"}, "protocol": {"name": "folder"}})
    >>> pipeline.features.levels
    (6, 3, 2, 1)
    """

    dataset: DatasetSection
    features: FeaturesSection = FeaturesSection()
    classifier: ClassifierSection = ClassifierSection()
    protocol: ProtocolSection


def read_pipeline(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check a pipeline file.

    Parameters
    ----------
    path : path-like
        A YAML file.
    overrides : sequence of str
        ``section.key=value``, each replacing one value; values are YAML too.

    Returns
    -------
    Pipeline

    Raises
    ------
    ConfigError
        If the file cannot be read, is no YAML mapping, or has an unknown key or a wrong value;
        the message names the key and what is allowed.
    """
    try:
        values = yaml.load(Path(path).read_text("utf-8"), _StrictLoader)
    except OSError as error:
        raise ConfigError(f"cannot read the pipeline file '{path}': {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{path}' is no YAML file: {_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"'{path}' must hold the keys {', '.join(Pipeline.model_fields)}")
    for override in overrides:
        values = _override(values, override)
    return parse_pipeline(values)


def parse_pipeline(values: Mapping[str, Any]) -> Pipeline:
    """Check a pipeline given as a mapping.

    Raises
    ------
    ConfigError
        As `read_pipeline`.

    Examples
    --------
    >>> parse_pipeline({"dataset": {"name": "demo"}, "protocl": {"name": "folder"}})
    Traceback (most recent call last):
        ...
    spptransfer.errors.ConfigError: unknown key 'protocl'; did you mean 'protocol'? ...
    """
    try:
        return Pipeline.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def _override(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    """Copy of nested mappings with one value replaced."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {text!r} is no YAML value") from error
    changed = dict(values)
    section = changed
    for key in keys[:-1]:
        inner = section.get(key)
        section[key] = dict(inner) if isinstance(inner, Mapping) else {}
        section = section[key]
    section[keys[-1]] = value
    return changed


def _explain(error: ValidationError) -> str:
    """One line for the first mistake; unknown keys come before what they leave missing."""
    mistakes = sorted(error.errors(), key=lambda mistake: mistake["type"] != "extra_forbidden")
    mistake = mistakes[0]
    where = [str(part) for part in mistake["loc"]]
    if mistake["type"] == "extra_forbidden":
        known = _fields(where[:-1])
        return f"unknown key '{'.'.join(where)}'; {suggestion(where[-1], known)}"
    if mistake["type"] == "missing":
        return f"'{'.'.join(where)}' is missing"
    return f"{'.'.join(where)}: {_expectation(mistake)}, got {mistake['input']!r}"


def _fields(section: Sequence[str]) -> list[str]:
    model: Any = Pipeline
    for name in section:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def _expectation(mistake: Mapping[str, Any]) -> str:
    """What the value should have been, in the words of YAML instead of Python."""
    ours = {
        "model_type": "must be a mapping of keys",
        "tuple_type": "must be a list",
        "too_short": "must not be empty",
        "string_type": "must be a string",
    }
    message: str = ours.get(mistake["type"], mistake["msg"]).removeprefix("Value error, ")
    return message[0].lower() + message[1:]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
