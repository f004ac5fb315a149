"""What a protocol is, from splits to measure, and those of the literature by name.

A protocol fixes what makes a number comparable: which images train and test (`Protocol.draw`), how
C is chosen (`folds`, `choose_C`, `chosen_by`), what is trained (`class_weight`, `difficult`), and
what is measured (the headline). Each entry of `PROTOCOLS` says all that sets its numbers apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BeforeValidator, Field

from spptransfer.datasets.base import Dataset
from spptransfer.datasets.folder import BACKGROUND
from spptransfer.errors import ConfigError, DatasetError, suggestion
from spptransfer.metrics import (
    DETECTION_AVERAGE_PRECISION,
    MEAN_AVERAGE_PRECISION,
    MEAN_PER_CLASS_ACCURACY,
    OVERALL_ACCURACY,
)
from spptransfer.protocols.descriptions import (
    choice_of_C,
    describe_caltech101,
    describe_detection,
    describe_folder,
    describe_table,
    describe_vissl,
    describe_voc2007,
    describe_voc2007_detection,
)
from spptransfer.protocols.learning_curve import describe_sizes, draw_sizes
from spptransfer.protocols.splits import (
    FOLDER_SPLITS,
    Settings,
    Split,
    check_splits,
    draw_folder,
    draw_official,
    draw_per_class,
    draw_table,
    images_per_class,
    read_splits,
    sizes_of,
    with_folds,
)
from spptransfer.sections import (
    CountFromZero,
    PathText,
    PositiveInt,
    Section,
    check,
    named_section,
)

# ------------------------------------------------------------------------------------- the settings

COMMON_DEFAULTS: Settings = {"seed": 0, "folds": 3, "choose_C": "shared", "split_file": None}


def _size_or_sizes(given: Any) -> Any:
    sizes = given if isinstance(given, list | tuple) else [given]
    whole = [size for size in sizes if type(size) is int and size > 0]
    if not sizes or len(whole) < len(sizes) or sorted(set(whole)) != whole:
        raise ValueError(
            "must be a whole number greater than or equal to 1, or a list of rising ones"
        )
    return given


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
    "train_per_class": (
        Annotated[PositiveInt | list[PositiveInt], BeforeValidator(_size_or_sizes)],
        "training images of each class, or a list for a learning curve; none: all others",
    ),
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
        return self.model_dump(exclude={"name"})


# ------------------------------------------------------------------------------------- the protocol


@dataclass(frozen=True)
class Protocol:
    """A named way to split a dataset, choose C, train and measure.

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
    detects : bool, default=False
        Whether objects are to be found in images, each with its box.

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
    detects: bool = False
    section: type[ProtocolSection] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        defaults, fields = {**COMMON_DEFAULTS, **self.defaults}, {}
        for key, default in defaults.items():
            kind, about = _SETTINGS.get(key, (Any if default is None else type(default), None))
            kind = kind | None if default is None else kind
            fields[key] = (kind, Field(default, description=about))
        object.__setattr__(self, "defaults", defaults)
        section = named_section(ProtocolSection, self.name, fields=fields)
        object.__setattr__(self, "section", section)

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
            The same one, or one with fewer classes and images. Where images have several labels
            and none is -1, those of 0 become -1: without a -1, 0 means absent.

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
        if len(dataset.classes) < 2 and not self.detects:
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
        if dataset.multi_label and not (dataset.targets == -1).any():
            targets = np.where(dataset.targets == 1, 1, -1).astype(np.int8)
            return replace(dataset, targets=targets)
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
        if sizes_of(settings) and (self.detects or settings["split_file"]):
            beside = "a detector" if self.detects else "protocol.split_file"
            raise ConfigError(
                f"protocol.train_per_class: a list of sizes does not go with {beside}"
            )
        if settings["split_file"]:
            read = read_splits(settings["split_file"])
            check_splits(read, dataset)
            splits = [with_folds(split, dataset, settings, split.name) for split in read]
        else:
            splits = self._draw(dataset, settings)
        check_splits(splits, dataset)
        for split in splits if settings["choose_C"] == "per class" else ():
            validated = set().union(*split.folds)
            images = images_per_class(dataset, sorted(validated))
            if validated and not images.all():
                raise DatasetError(
                    f"{split.name}: no validation image shows class "
                    f"'{dataset.classes[int(images.argmin())]}', so that a C of its own cannot be "
                    "chosen; set protocol.choose_C=shared"
                )
        return splits

    def _draw(self, dataset: Dataset, settings: Settings) -> list[Split]:
        """Draw splits, of several training sizes where the settings list some."""
        if sizes_of(settings):
            negative = 0 if self.difficult_in_training == "negative" else -1
            return draw_sizes(self.draw, dataset, settings, negative)
        given = settings.get("train_per_class") or settings.get("splits")
        if given and self.draw is draw_official:
            raise ConfigError(
                "protocol.train_per_class and splits are for a learning curve here: give sizes and "
                "repeats, such as train_per_class=[1,2,4] and splits=5"
            )
        return self.draw(dataset, settings)

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
            choice = choice_of_C(settings, "on the folds that it gives, or where it gives none ")
            return f"{self.name} on the splits of the file {settings['split_file']}. {choice}"
        multi_label = self.single_label_headline is None if dataset is None else dataset.multi_label
        return self.describe(settings, dataset) + describe_sizes(settings, multi_label)

    def headline(self, multi_label: bool) -> str:
        """Full name of the metric to quote.

        Parameters
        ----------
        multi_label : bool
            Whether the dataset's images may carry several classes.

        Returns
        -------
        str
            A key of `spptransfer.metrics.METRICS`.

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

    def choose_C_by(self, multi_label: bool) -> str:
        """Full name of the metric that decides C on validation images."""
        return self.chosen_by or self.headline(multi_label)


# -------------------------------------------------------------------------- those of the literature


def _caltech101_classes(dataset: Dataset, settings: Settings) -> Dataset:
    """Check the number of categories, and drop the background one if it does not count."""
    if not settings["include_background"] and BACKGROUND in dataset.classes:
        dataset = dataset.without_class(BACKGROUND)
    expected = 102 if settings["include_background"] else 101
    if len(dataset.classes) != expected:
        raise DatasetError(
            f"the Caltech-101 protocols need {expected} categories "
            f"(protocol.include_background={str(settings['include_background']).lower()}), "
            f"but {dataset.root} has {len(dataset.classes)}"
        )
    return dataset


_VOC2007 = {"train": "trainval", "test": "test", "choose_C": "per class"}
_SIZES = {"train_per_class": None, "splits": None}  # of a learning curve
_CALTECH101 = {"train_per_class": 30, "splits": 10, "include_background": True}
_FOLDER = {"test_fraction": None, "train_per_class": None, "test_per_class": None, "splits": 1}

_DETECTION = {"folds": 5, "choose_C": "shared"}

_ALL = (
    # Paper, section 3.2: the VOC 2007 devkit's task and measure.
    Protocol(
        name="voc2007",
        defaults={**_VOC2007, "validation": None, **_SIZES},
        draw=draw_official,
        describe=describe_voc2007,
        multi_label_headline=MEAN_AVERAGE_PRECISION["11-point"],
    ),
    # VISSL, svm_trainer.py and evaluate.py, with the costs of its VOC07 configuration.
    Protocol(
        name="voc2007-vissl",
        defaults={**_VOC2007, **_SIZES},
        draw=draw_official,
        describe=describe_vissl,
        multi_label_headline=MEAN_AVERAGE_PRECISION["area"],
        chosen_by=MEAN_AVERAGE_PRECISION["uninterpolated"],
        difficult_in_training="negative",
        class_weight={1: 2.0, -1: 1.0},
        C=(0.01, 0.1, 1.0, 2.0, 5.0, 10.0, 15.0, 20.0, 50.0, 100.0, 1000.0),
    ),
    # Paper, section 3.3.
    Protocol(
        name="caltech101",
        defaults={**_CALTECH101, "test_per_class": 50},
        draw=draw_per_class,
        describe=describe_caltech101,
        single_label_headline=OVERALL_ACCURACY,
        restrict_classes=_caltech101_classes,
    ),
    Protocol(
        name="caltech101-30-rest",
        defaults={**_CALTECH101, "test_per_class": None},
        draw=draw_per_class,
        describe=describe_caltech101,
        single_label_headline=MEAN_PER_CLASS_ACCURACY,
        restrict_classes=_caltech101_classes,
    ),
    Protocol(
        name="folder",
        defaults=_FOLDER,
        draw=draw_folder,
        describe=describe_folder,
        single_label_headline=OVERALL_ACCURACY,
        multi_label_headline=MEAN_AVERAGE_PRECISION["area"],
    ),
    Protocol(
        name="csv",
        defaults={**_FOLDER, **FOLDER_SPLITS},
        draw=draw_table,
        describe=describe_table,
        single_label_headline=OVERALL_ACCURACY,
        multi_label_headline=MEAN_AVERAGE_PRECISION["area"],
    ),
    # Paper, section 4: the VOC 2007 devkit's task and measure.
    Protocol(
        name="voc2007-detection",
        defaults={**_VOC2007, **_DETECTION, "validation": None},
        draw=draw_official,
        describe=describe_voc2007_detection,
        multi_label_headline=DETECTION_AVERAGE_PRECISION["11-point"],
        detects=True,
    ),
    Protocol(
        name="detection",
        defaults={**_FOLDER, **FOLDER_SPLITS, **_DETECTION},
        draw=draw_table,
        describe=describe_detection,
        multi_label_headline=DETECTION_AVERAGE_PRECISION["area"],
        detects=True,
    ),
)
PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in _ALL}


def sections() -> dict[str, type[ProtocolSection]]:
    """Return the schema of the ``protocol`` section for each name."""
    return {name: protocol.section for name, protocol in PROTOCOLS.items()}


def get(name: str) -> Protocol:
    """Give the protocol of a name.

    Parameters
    ----------
    name : str
        A key of `PROTOCOLS`.

    Returns
    -------
    Protocol
        Its entry.

    Raises
    ------
    ConfigError
        If there is none; the message gives the nearest name.

    Examples
    --------
    >>> get("voc2007").headline(multi_label=True)
    'mean average precision (11-point)'
    >>> get("voc07")
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: unknown protocol 'voc07'; did you mean 'voc2007'? ...
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol '{name}'; {suggestion(name, PROTOCOLS)}")
    return PROTOCOLS[name]
