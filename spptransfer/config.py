"""The pipeline file: its schema, how it is read, and how its mistakes are told."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator

from spptransfer import datasets, protocols
from spptransfer.datasets import DatasetSection
from spptransfer.detection.settings import DetectionSection
from spptransfer.errors import ConfigError, suggestion
from spptransfer.images import View
from spptransfer.protocols import ProtocolSection
from spptransfer.pyramid.bins import Pooling
from spptransfer.sections import (
    ByName,
    PathText,
    PositiveInt,
    Section,
    check,
    read_mapping,
    replace,
)
from spptransfer.spec import Storage


def _listed(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else [value]


NormalizationStep = Literal["l2", "l2_block", "mean_length", "signed_sqrt", "standardize"]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# Products with a larger one overflow in float32; the solver sets the same limit.
Cost = Annotated[float, Field(gt=0, le=1e20, allow_inf_nan=False)]
Label = Annotated[str, Field(min_length=1)]
Number = Annotated[float, Field(allow_inf_nan=False)]
_TEXT = {"type": "string", "minLength": 1}
# What a paper prints: a number, or a number with its standard deviation.
PaperValue = Annotated[
    tuple[Number, ...], BeforeValidator(_listed), Field(min_length=1, max_length=2)
]


def _each_once(steps: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(steps)) < len(steps):
        raise ValueError("must hold each step once")
    return steps


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
    BeforeValidator(_class_weight),
]


class FeaturesSection(Section):
    """How an image becomes a vector."""

    backbone: str = Field(
        "alexnet", description="a name that `spptransfer backbones` lists, or timm/NAME"
    )
    weights: PathText | None = Field(
        None,
        description="a catalogue name, a file, or random:SEED; null: the backbone's own",
    )
    layer: Annotated[
        tuple[Label, ...],
        BeforeValidator(_listed),
        Field(min_length=1),
        WithJsonSchema({"anyOf": [_TEXT, {"type": "array", "items": _TEXT, "minItems": 1}]}),
    ] = Field(("spp",), description="a layer of the backbone, or several, side by side")
    levels: tuple[PositiveInt, ...] | None = Field(
        None,
        description="n x n grids of the pyramid; [] is the whole map of a center_crop or warp, "
        "null the backbone's own: [6, 3, 2, 1], or [3, 2, 1] of 1,024 channels and more",
    )
    pooling: Pooling = Field("max", description="what is taken in a bin")
    scales: (
        Annotated[tuple[PositiveInt, ...], BeforeValidator(_listed), Field(min_length=1)] | None
    ) = Field(
        None,
        description="lengths of the smaller side in pixels; null: the backbone's own, mostly [224]",
    )
    view: View = Field("full", description="the whole image, its centre, or warped to a square")
    combine: Literal["concat", "mean", "max"] = Field(
        "concat", description="what becomes of several scales"
    )
    flip: bool = Field(False, description="average with the mirrored image")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="arithmetic of the backbone; auto is bfloat16 where that gains time and the "
        "first images stand it, else float32",
    )
    storage: Storage = Field("float32", description="type of the numbers in the cache")


class ClassifierSection(Section):
    """How vectors become classes."""

    normalize: Annotated[tuple[NormalizationStep, ...], AfterValidator(_each_once)] | None = Field(
        None, description="applied in order; null: [l2], or [l2_block] of several layers"
    )
    loss: Literal["squared_hinge", "hinge"] = "squared_hinge"
    C: Annotated[tuple[Cost, ...], BeforeValidator(_listed), Field(min_length=1)] | None = Field(
        None, description="values to choose from; one value is taken as it is"
    )
    class_weight: ClassWeight = Field(
        None, description="balanced, or weights of every class's positives (1) and negatives (-1)"
    )
    solver: Literal["spptransfer", "scikit-learn"] = Field(
        "spptransfer", description="LinearSVM of this package, or scikit-learn's LinearSVC"
    )
    engine: Literal["local", "dask"] = Field(
        "local", description="who chooses C: this process, or Dask's workers, a fold each"
    )
    scheduler: str | None = Field(
        None, description="address of Dask's scheduler; by default a cluster on this machine"
    )

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.scheduler is not None and self.engine != "dask":
            raise ValueError(
                f"scheduler '{self.scheduler}' goes with engine dask only, not with '{self.engine}'"
            )
        return self


class GridRow(Section):
    """A row of a table of experiments."""

    label: Label = Field(description="what the row is called")
    set: dict[str, Any] = Field({}, description="values replaced in it, as features.layer: conv4")
    only: tuple[Label, ...] | None = Field(
        None, description="labels of the columns it is computed in; all by default"
    )


class GridColumn(Section):
    """A column of a table of experiments, and the paper's columns to print beside it."""

    label: Label = Field(description="what the column is called")
    set: dict[str, Any] = Field({}, description="values replaced in it, as features.view: warp")
    paper: dict[Label, dict[Label, PaperValue]] = Field(
        {}, description="the paper's values: by column of its table, then by row of this one"
    )


class GridSection(Section):
    """A table of experiments: every row in every column."""

    title: str = Field("", description="what the table shows")
    rows: tuple[GridRow, ...] = Field(min_length=1)
    columns: tuple[GridColumn, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        rows, columns = ([line.label for line in lines] for lines in (self.rows, self.columns))
        for labels, name in ((rows, "row"), (columns, "column")):
            for label in labels:
                if labels.count(label) > 1:
                    raise ValueError(f"two {name}s are called '{label}'")
        for row in self.rows:
            for label in row.only or ():
                _known("column", label, columns)
        for column in self.columns:
            for values in column.paper.values():
                for label in values:
                    _known("row", label, rows)
        return self

    def cells(self) -> Iterator[tuple[GridRow, GridColumn]]:
        """Rows and columns that are to be computed, row by row."""
        for row in self.rows:
            for column in self.columns:
                if row.only is None or column.label in row.only:
                    yield row, column


def _known(kind: str, label: str, labels: Sequence[str]) -> None:
    if label not in labels:
        raise ValueError(f"no {kind} is called '{label}'; {suggestion(label, labels)}")


class Pipeline(Section):
    """One experiment, or a table of them: dataset, features, classifier, protocol.

    Examples
    --------
    >>> pipeline = parse_pipeline({"dataset": {"name": "demo"}, "protocol": {"name": "folder"}})
    >>> pipeline.features.layer
    ('spp',)
    """

    dataset: Annotated[DatasetSection, ByName(datasets.sections)] = Field(
        description="which images: a registered dataset, where it is, and its options"
    )
    features: FeaturesSection = FeaturesSection()
    classifier: ClassifierSection = ClassifierSection()
    detection: DetectionSection | None = Field(
        None, description="how objects are found in images, where that is what is wanted"
    )
    protocol: Annotated[ProtocolSection, ByName(protocols.sections)] = Field(
        description="what makes the number comparable: a protocol and its settings"
    )
    grid: GridSection | None = Field(None, description="a table of experiments, if it is one")

    @model_validator(mode="after")
    def _check_detection(self) -> Self:
        detects = protocols.get(self.protocol.name).detects
        if detects and self.detection is None:
            raise ValueError(
                f"protocol '{self.protocol.name}' needs a section detection; {{}} has its defaults"
            )
        if self.detection is not None and not detects:
            names = [name for name, each in protocols.PROTOCOLS.items() if each.detects]
            raise ValueError(
                f"protocol '{self.protocol.name}' detects nothing; allowed with a section "
                f"detection: {', '.join(names)}"
            )
        return self

    @classmethod
    def model_validate(cls, *args: Any, **kwargs: Any) -> Self:
        """Check against the datasets and protocols that are registered now."""
        _follow_registries()
        return super().model_validate(*args, **kwargs)

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the JSON schema, with the datasets and protocols that are registered now."""
        _follow_registries()
        return super().model_json_schema(*args, **kwargs)


def _registered() -> list[type[Section]]:
    return [*datasets.sections().values(), *protocols.sections().values()]


_known_sections = _registered()


def _follow_registries() -> None:
    """Build the unions of `Pipeline` again if something was registered since."""
    global _known_sections
    if (now := _registered()) != _known_sections:
        Pipeline.model_rebuild(force=True)
        _known_sections = now


def read_pipeline(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Pipeline:
    """Read and check a pipeline file."""
    return parse_pipeline(read_mapping(path, Pipeline, overrides))


def parse_pipeline(values: Mapping[str, Any]) -> Pipeline:
    """Check a pipeline given as a mapping."""
    return check(Pipeline, values)


def cell_pipeline(pipeline: Pipeline, row: GridRow, column: GridColumn) -> Pipeline:
    """Give the pipeline of one cell of a grid."""
    for key in row.set:
        if key in column.set:
            raise ConfigError(f"its row and its column both set {key}")
    # Only what was given: another dataset or protocol need not know the defaults of this one.
    values = pipeline.model_dump(exclude={"grid"}, exclude_unset=True)
    for key, value in {**row.set, **column.set}.items():
        values = replace(values, key, value, f"set {key}")
    return parse_pipeline(values)
