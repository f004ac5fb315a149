"""The page's view model: every section's content, or a sentence that says why it is absent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from spptransfer.metrics import MEAN_AVERAGE_PRECISION
from spptransfer.report.confusion import Confusion, confusion, count_confusions
from spptransfer.report.curves import ClassCurves, class_curves, split_average_precisions
from spptransfer.report.examples import Example, ExampleGroup, example_groups
from spptransfer.report.formatting import count, duration
from spptransfer.report.run_folder import MissingPartError, RunFolder
from spptransfer.report.summary import (
    ChoiceOfC,
    ClassTable,
    Metric,
    Stage,
    choice_of_C,
    class_table,
    metrics,
    per_class_metric,
    stages,
)
from spptransfer.report.thumbnails import thumbnail
from spptransfer.report.weight_maps import attention_maps
from spptransfer.text import plural

# Beyond these a page would grow past a few megabytes and no eye would follow.
MATRIX_LIMIT = 250
MAPS_LIMIT = 250

Content = TypeVar("Content")


@dataclass(frozen=True)
class Section(Generic[Content]):
    """One section's content, or why there is none.

    Attributes
    ----------
    content : object or None
        What to show.
    note : str or None
        Why there is nothing to show, or what is missing from it.
    """

    content: Content | None = None
    note: str | None = None


@dataclass(frozen=True)
class Picture:
    """An example with its thumbnail.

    Attributes
    ----------
    example : Example
        What was said about the image.
    uri : str or None
        The thumbnail as a data URI; None if the file is gone or unreadable.
    """

    example: Example
    uri: str | None


@dataclass(frozen=True)
class WeightMaps:
    """Where the classes look.

    Attributes
    ----------
    overall : ndarray of shape (side, side)
        Mean over the classes; 1 is an even spread.
    maps : list of (str, ndarray of shape (side, side))
        Every class with its map.
    domain : (float, float)
        Values at the ends of the colour scale.
    """

    overall: npt.NDArray[np.float64]
    maps: list[tuple[str, npt.NDArray[np.float64]]]
    domain: tuple[float, float]


@dataclass(frozen=True)
class View:
    """All that the page shows, apart from what it takes from ``results.json`` as it stands."""

    metrics: list[Metric]
    facts: list[tuple[str, str]]
    classes: Section[ClassTable]
    curves: Section[list[ClassCurves]]
    confusion: Section[Confusion]
    examples: Section[list[tuple[ExampleGroup, list[Picture]]]]
    weight_maps: Section[WeightMaps]
    choice: ChoiceOfC
    stages: list[Stage]


def build_view(run: RunFolder) -> View:
    """Compute what the report of a run shows.

    Parameters
    ----------
    run : RunFolder
        The run; its predictions and its model may be absent.

    Returns
    -------
    View
        The view model.
    """
    counts: Section[npt.NDArray[np.int64]] = Section()
    if not run.multi_label:
        counts = _attempt(lambda: count_confusions(run.predictions(), len(run.classes)))
    return View(
        metrics=metrics(run.results),
        facts=facts(run.results),
        classes=_classes(run, counts),
        curves=_curves(run),
        confusion=_confusion(run, counts),
        examples=_attempt(lambda: _pictures(run)),
        weight_maps=_weight_maps(run),
        choice=choice_of_C(run.results["splits"]),
        stages=stages(run.results.get("timings")),
    )


def facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """List what a reader wants to know first about a run.

    Parameters
    ----------
    results : mapping
        Contents of ``results.json``.

    Returns
    -------
    list of (str, str)
        Label and value.
    """
    dataset, features, splits = results["dataset"], results["features"], results["splits"]
    spec = features.get("spec") or {}
    train, test = _extent(splits, "train"), _extent(splits, "test")
    return [
        ("Dataset", str(dataset["name"])),
        ("Images", count(dataset.get("images"))),
        ("Classes", count(len(dataset["classes"]))),
        ("Training · test images", f"{train} · {test}"),
        ("Splits", count(len(splits))),
        ("Backbone · layer", f"{spec.get('backbone', '–')} · {spec.get('layer', '–')}"),
        ("Dimension", count(features.get("dimension"))),
        ("Time", duration((results.get("timings") or {}).get("total"))),
    ]


def _extent(splits: Sequence[Mapping[str, Any]], key: str) -> str:
    """Write a size that may differ from split to split."""
    sizes = [int(split[key]) for split in splits if split.get(key) is not None]
    if not sizes:
        return "–"
    low, high = min(sizes), max(sizes)
    return count(low) if low == high else f"{count(low)}–{count(high)}"


def _attempt(build: Callable[[], Content]) -> Section[Content]:
    """Build a section, or say which part of the run folder it lacks."""
    try:
        return Section(build())
    except MissingPartError as missing:
        return Section(note=f"Not shown: {missing}.")


def _classes(run: RunFolder, counts: Section[npt.NDArray[np.int64]]) -> Section[ClassTable]:
    """Every class's score, from the results or else from the confusions."""
    name = per_class_metric(run.results)
    per_split = _accuracies(counts.content) if counts.content is not None else None
    if name is not None:
        if run.multi_label:
            per_split = _attempt(lambda: _average_precisions(run, name)).content
        values = run.results["metrics"][name]["per_class"]
        return Section(class_table(name, values, run.classes, per_split))
    if per_split is None or not len(per_split):
        return Section(note=counts.note or "The results hold no score per class.")
    known = (~np.isnan(per_split)).sum(axis=0)
    means = np.nansum(per_split, axis=0) / np.where(known, known, np.nan)
    found = dict(zip(run.classes, means.tolist(), strict=True))
    return Section(class_table("accuracy", found, run.classes, per_split))


def _accuracies(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Share of right images per split and class; NaN where a class has no test image."""
    right, total = counts.diagonal(axis1=1, axis2=2), counts.sum(axis=2)
    return np.divide(right, total, out=np.full(total.shape, np.nan), where=total > 0)


def _average_precisions(run: RunFolder, metric: str) -> npt.NDArray[np.float64] | None:
    """Average precision per split and class by the metric's method; None for a single split."""
    for method, name in MEAN_AVERAGE_PRECISION.items():
        if name == metric and len(run.results["splits"]) > 1:
            return split_average_precisions(run.predictions(), len(run.classes), method)
    return None


def _curves(run: RunFolder) -> Section[list[ClassCurves]]:
    """Every class's precision-recall curve, where an image can have several labels."""
    if not run.multi_label:
        return Section()
    return _attempt(lambda: class_curves(run.predictions(), run.classes))


def _confusion(run: RunFolder, counts: Section[npt.NDArray[np.int64]]) -> Section[Confusion]:
    """Arrange the confusions of all splits together."""
    if counts.content is None:
        return Section(note=counts.note)
    arranged = confusion(counts.content.sum(axis=0), run.classes)
    if len(run.classes) > MATRIX_LIMIT:
        return Section(arranged, f"The matrix is drawn for up to {MATRIX_LIMIT} classes.")
    return Section(arranged)


def _pictures(run: RunFolder) -> list[tuple[ExampleGroup, list[Picture]]]:
    """Choose examples and make their thumbnails."""
    groups = example_groups(run.predictions(), run.classes, multi_label=run.multi_label)
    return [
        (group, [Picture(example, _thumbnail(run, example)) for example in group.examples])
        for group in groups
    ]


def _thumbnail(run: RunFolder, example: Example) -> str | None:
    """Make an example's thumbnail where the dataset is still there."""
    path = run.image_path(example.image_id)
    return None if path is None else thumbnail(path)


def missing_pictures(groups: Sequence[tuple[ExampleGroup, list[Picture]]]) -> str | None:
    """Say how many thumbnails could not be made.

    Parameters
    ----------
    groups : sequence of (ExampleGroup, list of Picture)
        The examples shown.

    Returns
    -------
    str or None
        A sentence; None if every image was found.
    """
    pictures = [picture for _, shown in groups for picture in shown]
    missing = sum(picture.uri is None for picture in pictures)
    if not missing:
        return None
    return (
        f"{plural(missing, 'image')} of {len(pictures)} could not be read where the run found "
        "the dataset; what was said about them is shown without a picture."
    )


def _weight_maps(run: RunFolder) -> Section[WeightMaps]:
    """Spread the weights over the image, if the features know where they come from."""
    blocks = run.results["features"].get("blocks") or []
    finest = max((block.get("level") or 1 for block in blocks), default=1)
    if finest == 1:
        return Section(note="Not shown: these features have no grid of bins.")
    if len(run.classes) > MAPS_LIMIT:
        return Section(note=f"Not shown: maps are drawn for up to {MAPS_LIMIT} classes.")
    return _attempt(lambda: _drawn_maps(run, finest))


def _drawn_maps(run: RunFolder, finest: int) -> WeightMaps:
    """Compute the maps, and a colour scale that all of them share."""
    try:
        maps = attention_maps(run.weight_blocks(), finest)
    except ValueError as error:
        raise MissingPartError(f"model.safetensors does not fit results.json: {error}") from error
    # The scale ends at percentiles: one odd bin would leave every other map without contrast.
    low, high = (float(edge) for edge in np.percentile(maps, (1, 99)))
    return WeightMaps(maps.mean(axis=0), list(zip(run.classes, maps, strict=True)), (low, high))
