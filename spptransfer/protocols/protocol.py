"""What a protocol is: splits, the choice of C, and the metric that make a number comparable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from spptransfer.datasets.base import Dataset
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.metrics import metrics_of
from spptransfer.protocols.splits import Split, check_splits, read_splits, stratified_folds
from spptransfer.sections import (
    CountFromZero,
    PathText,
    PositiveInt,
    Section,
    check,
    named_section,
)

Settings = Mapping[str, Any]

COMMON_DEFAULTS: Settings = {"seed": 0, "folds": 3, "choose_C": "shared", "split_file": None}


def _not_one(folds: int) -> int:
    if folds == 1:
        raise ValueError("must be 0 (no choice of C) or at least 2")
    return folds


# Type and meaning of every setting of the presets. Where its default is None, it may be None.
_SETTINGS: Mapping[str, tuple[Any, str]] = {
    "seed": (CountFromZero, "of drawn splits and folds"),
    "folds": (
        Annotated[CountFromZero, AfterValidator(_not_one)],
        "folds of the training part on which C is chosen; 0: C is given",
    ),
    "choose_C": (
        Literal["shared", "per class"],
        "one C for all classes or, with several labels per image, one each",
    ),
    "split_file": (PathText, "split lists to use instead, such as a run's splits.json"),
    "splits": (PositiveInt, "number of drawn splits"),
    "train_per_class": (PositiveInt, "training images of each class; none: all others"),
    "test_per_class": (PositiveInt, "test images of each class at most; none: all others"),
    "test_fraction": (
        Annotated[float, Field(gt=0, lt=1, strict=True, allow_inf_nan=False)],
        "share of test images where neither number is given, 0.25 by default",
    ),
    "include_background": (
        Annotated[bool, Field(strict=True)],
        "102 categories, or 101 without BACKGROUND_Google",
    ),
    "train": (str, "official split to train on"),
    "test": (str, "official split to test on"),
    "validation": (str, "official split that C is chosen on; none: the usual one, or folds"),
}


class ProtocolSection(Section):
    """What makes the number comparable: a protocol and its settings."""

    name: str

    def settings(self) -> dict[str, Any]:
        """Return every setting of the protocol, those not given with their defaults."""
        return {key: getattr(self, key) for key in type(self).model_fields if key != "name"}


def _section_of(name: str, defaults: Settings) -> type[ProtocolSection]:
    """Make the schema of the ``protocol`` section of one protocol."""
    fields: dict[str, Any] = {}
    for key, default in defaults.items():
        unknown = Any if default is None else type(default)
        kind, about = _SETTINGS.get(key, (unknown, None))
        fields[key] = (kind | None if default is None else kind, Field(default, description=about))
    return named_section(ProtocolSection, name, fields=fields)


@dataclass(frozen=True)
class Protocol:
    """A named way to split a dataset, choose C and measure.

    Parameters
    ----------
    name : str
        As in the ``protocol`` section of a pipeline file.
    defaults : mapping
        Every setting of that section except ``name``, with its default.
    draw : callable
        ``(dataset, settings) -> list of Split``.
    describe : callable
        ``(settings, dataset or None) -> str``: splits and measure in plain words.
    single_label_headline, multi_label_headline : str or None
        Full name of the metric to quote; None where the protocol is not for such labels.
    restrict_classes : callable, optional
        ``(dataset, settings) -> Dataset`` with only the classes that count.
    chosen_by : str, optional
        Full name of the metric that decides C; the headline by default.
    difficult_in_training : {"ignore", "negative"}, default="ignore"
        What images are to the classifier of a class that they show only as difficult.
    class_weight : mapping of int to float, optional
        Weight of C for targets 1 and -1 of the one-versus-rest problems; equal by default.
    C : tuple of float, optional
        Values to choose from where the pipeline file gives none.

    Attributes
    ----------
    section : type
        The schema of the ``protocol`` section, a `ProtocolSection`.
    """

    name: str
    defaults: Settings
    draw: Callable[[Dataset, Settings], list[Split]]
    describe: Callable[[Settings, Dataset | None], str]
    single_label_headline: str | None = None
    multi_label_headline: str | None = None
    restrict_classes: Callable[[Dataset, Settings], Dataset] | None = None
    chosen_by: str | None = None
    difficult_in_training: Literal["ignore", "negative"] = "ignore"
    class_weight: Mapping[int, float] | None = None
    C: tuple[float, ...] | None = None
    section: type[ProtocolSection] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", {**COMMON_DEFAULTS, **self.defaults})
        object.__setattr__(self, "section", _section_of(self.name, self.defaults))

    def settings(self, given: Settings | None = None) -> dict[str, Any]:
        """Complete and check what a pipeline file gives.

        Parameters
        ----------
        given : mapping, optional
            Settings by name; a ``name`` among them is left out.

        Returns
        -------
        dict
            Every setting of the protocol.

        Raises
        ------
        ConfigError
            If a setting is unknown, of the wrong type or out of range.

        Examples
        --------
        >>> from spptransfer import protocols
        >>> protocols.get("caltech101").settings({"splits": 2})["splits"]
        2
        >>> protocols.get("caltech101").settings({"split": 2})
        Traceback (most recent call last):
        ...
        spptransfer.errors.ConfigError: unknown key 'protocol.split'; did you mean 'splits'? ...
        """
        return check(self.section, {**(given or {}), "name": self.name}, "protocol").settings()

    def restrict(self, dataset: Dataset, settings: Settings) -> Dataset:
        """Give the dataset with only the classes that the protocol counts.

        Training and measuring must use this dataset's `classes` and `targets`.

        Parameters
        ----------
        dataset : Dataset
            As it was opened.
        settings : mapping
            From `settings`.

        Returns
        -------
        Dataset
            The same one, or one with fewer classes and images.

        Raises
        ------
        DatasetError
            If the dataset has no labels, one class only, or not those of the protocol.
        """
        if not dataset.labelled:
            raise DatasetError(
                f"{dataset.root} holds images but no class folders: features can be extracted, "
                f"but protocol '{self.name}' needs one folder per class"
            )
        if self.restrict_classes is not None:
            dataset = self.restrict_classes(dataset, settings)
        if len(dataset.classes) < 2:
            raise DatasetError(
                f"{dataset.root} has one class only ('{dataset.classes[0]}'); "
                f"protocol '{self.name}' needs at least two"
            )
        self.headline(dataset.multi_label)
        if settings["choose_C"] == "per class" and not dataset.multi_label:
            raise ConfigError(
                "protocol.choose_C='per class' is for several labels per image; "
                "with one label per image, use 'shared'"
            )
        return dataset

    def make_splits(self, dataset: Dataset, settings: Settings) -> list[Split]:
        """Draw, or read from ``split_file``, the lists of training and test images.

        Parameters
        ----------
        dataset : Dataset
            As it was opened.
        settings : mapping
            From `settings`.

        Returns
        -------
        list of Split
            Every id is in the dataset, and every class has images to train on.

        Raises
        ------
        ConfigError
            If settings contradict each other or the labels are not of the protocol's kind.
        DatasetError
            If the dataset has too few images or classes, or the file's lists do not fit it.
        """
        dataset = self.restrict(dataset, settings)
        if settings["split_file"]:
            read = read_splits(settings["split_file"])
            check_splits(read, dataset)
            splits = [_with_folds(split, dataset, settings) for split in read]
        else:
            splits = self.draw(dataset, settings)
        check_splits(splits, dataset)
        return splits

    def description(self, settings: Settings, dataset: Dataset | None = None) -> str:
        """Say in one to three sentences what the protocol does.

        Parameters
        ----------
        settings : mapping
            From `settings`.
        dataset : Dataset, optional
            Lets a protocol that depends on it say which way it went.

        Returns
        -------
        str
            For readers of a result.

        Examples
        --------
        >>> from spptransfer import protocols
        >>> protocol = protocols.get("caltech101")
        >>> print(protocol.description(protocol.settings()))
        Caltech-101 with the background category (102 categories): 30 training and at most 50
        test images per category, 10 random splits (seed 0); mean and standard deviation of the
        overall accuracy. C is chosen by 3-fold cross-validation on the training images.
        """
        if settings["split_file"]:
            choice = (
                "C is chosen on the folds that it gives, or where it gives none "
                f"by {settings['folds']}-fold cross-validation on the training images"
                if settings["folds"]
                else "C is given, not chosen"
            )
            return f"{self.name} on the splits of the file {settings['split_file']}. {choice}."
        return self.describe(settings, dataset)

    def headline(self, multi_label: bool) -> str:
        """Full name of the metric to quote.

        Parameters
        ----------
        multi_label : bool
            Whether the dataset's images may carry several classes.

        Returns
        -------
        str
            One of `metrics`.

        Raises
        ------
        ConfigError
            If the protocol is not for such labels.
        """
        name = self.multi_label_headline if multi_label else self.single_label_headline
        if name is None:
            kind = "several labels" if multi_label else "one label"
            raise ConfigError(f"protocol '{self.name}' is not for datasets of {kind} per image")
        return name

    def metrics(self, multi_label: bool) -> tuple[str, ...]:
        """Full names of all metrics that a result gives, whichever is the headline."""
        return metrics_of(multi_label)

    def choose_C_by(self, multi_label: bool) -> str:
        """Full name of the metric that decides C on validation images."""
        return self.chosen_by or self.headline(multi_label)


def _with_folds(split: Split, dataset: Dataset, settings: Settings) -> Split:
    """Give a split from a file the folds that the settings ask for."""
    if settings["folds"] == 0:
        return replace(split, folds=())
    if split.folds:
        return split
    folds = stratified_folds(
        dataset, split.train, settings["folds"], seed=settings["seed"], split=split.name
    )
    return replace(split, folds=folds)
