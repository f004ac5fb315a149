"""What a protocol is: splits, the choice of C, and the metric that make a number comparable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from spptransfer.datasets.base import Dataset
from spptransfer.errors import ConfigError, DatasetError, suggestion
from spptransfer.metrics import metrics_of
from spptransfer.protocols.splits import Split, check_splits, read_splits, stratified_folds

Settings = Mapping[str, Any]

COMMON_DEFAULTS: Settings = {"seed": 0, "folds": 3, "choose_C": "shared", "split_file": None}

# Where a default is None, its type cannot be read off.
_OPTIONAL: Mapping[str, tuple[type, ...]] = {
    "split_file": (str, os.PathLike),
    "validation": (str,),
    "train_per_class": (int,),
    "test_per_class": (int,),
    "test_fraction": (float, int),
}
_SMALLEST = {"train_per_class": 1, "test_per_class": 1, "splits": 1, "seed": 0, "folds": 0}
_ALLOWED = {"choose_C": ("shared", "per class")}


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

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", {**COMMON_DEFAULTS, **self.defaults})

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
        spptransfer.errors.ConfigError: protocol.split is unknown; did you mean 'splits'? ...
        """
        given = {key: value for key, value in (given or {}).items() if key != "name"}
        for key, value in given.items():
            if key not in self.defaults:
                hint = suggestion(key, sorted(self.defaults))
                raise ConfigError(f"protocol.{key} is unknown; {hint}")
            _check_setting(key, value, self.defaults[key])
        return {**self.defaults, **given}

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


def _check_setting(key: str, value: Any, default: Any) -> None:
    """Refuse a value of the wrong type or out of range."""
    if value is None and default is None:
        return
    allowed = _OPTIONAL.get(key, (type(default),))
    wrong_type = not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed)
    if wrong_type:
        kinds = " or ".join(kind.__name__ for kind in allowed)
        raise ConfigError(f"protocol.{key} must be of type {kinds}, not {value!r}")
    if key in _SMALLEST and value < _SMALLEST[key]:
        raise ConfigError(f"protocol.{key} must be at least {_SMALLEST[key]}, not {value}")
    if key == "folds" and value == 1:
        raise ConfigError("protocol.folds must be 0 (no choice of C) or at least 2, not 1")
    if key == "test_fraction" and not 0 < value < 1:
        raise ConfigError(f"protocol.test_fraction must lie between 0 and 1, not {value}")
    if key in _ALLOWED and value not in _ALLOWED[key]:
        hint = suggestion(value, _ALLOWED[key])
        raise ConfigError(f"protocol.{key} is '{value}'; {hint}")
