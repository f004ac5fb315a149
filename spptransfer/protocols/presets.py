"""The protocols by name. Each entry of `PROTOCOLS` says all that sets its numbers apart."""

from __future__ import annotations

from spptransfer.datasets.base import Dataset
from spptransfer.errors import ConfigError, suggestion
from spptransfer.metrics import (
    MEAN_AVERAGE_PRECISION,
    MEAN_PER_CLASS_ACCURACY,
    OVERALL_ACCURACY,
)
from spptransfer.protocols.drawing import (
    DEFAULT_TEST_FRACTION,
    FOLDER_SPLITS,
    caltech101_classes,
    draw_folder,
    draw_official,
    draw_per_class,
    draw_table,
    has_own_folders,
    table_validation_split,
    validation_split,
)
from spptransfer.protocols.protocol import Protocol, ProtocolSection, Settings


def _cross_validation(settings: Settings) -> str:
    """Describe the choice of C by folds."""
    if settings["folds"] == 0:
        return "C is given, not chosen."
    return f"C is chosen by {settings['folds']}-fold cross-validation on the training images."


def _describe_voc2007(settings: Settings, dataset: Dataset | None) -> str:
    """Describe splits, treatment of difficult images and choice of C."""
    train, validation = settings["train"], validation_split(settings)
    whose = "for each class" if settings["choose_C"] == "per class" else "for all classes together"
    if settings["folds"] == 0:
        choice = "C is given, not chosen"
    elif validation is not None:
        choice = f"C is chosen {whose} on '{validation}', then all of '{train}' is trained on"
    else:
        choice = f"C is chosen {whose} by {settings['folds']}-fold cross-validation on '{train}'"
    return (
        f"PASCAL VOC 2007 classification: trained on '{train}', tested on '{settings['test']}', "
        f"one classifier per class against the rest; images that show a class only as difficult "
        f"are ignored for that class in training and test. {choice}."
    )


def _describe_vissl(settings: Settings, dataset: Dataset | None) -> str:
    """Describe what VISSL's trainer does, and where this differs."""
    whose = "each class" if settings["choose_C"] == "per class" else "all classes together"
    choice = (
        f"C is chosen for {whose} by the average precision (uninterpolated) of "
        f"{settings['folds']}-fold cross-validation, with the same folds for every class"
        if settings["folds"]
        else "C is given, not chosen"
    )
    return (
        f"PASCAL VOC 2007 classification after VISSL's SVM benchmark: trained on "
        f"'{settings['train']}', tested on '{settings['test']}'; positives weigh twice, images "
        f"that show a class only as difficult are negatives in training and ignored in the test. "
        f"{choice}."
    )


def _describe_caltech101(settings: Settings, dataset: Dataset | None) -> str:
    """Describe categories, images per category and splits."""
    with_or_without, number = ("with", 102) if settings["include_background"] else ("without", 101)
    n_train, n_test = settings["train_per_class"], settings["test_per_class"]
    if n_test is None:
        sizes = f"{n_train} training images per category and all others to test"
    else:
        sizes = f"{n_train} training and at most {n_test} test images per category"
    headline = MEAN_PER_CLASS_ACCURACY if n_test is None else OVERALL_ACCURACY
    return (
        f"Caltech-101 {with_or_without} the background category ({number} categories): {sizes}, "
        f"{_random_splits(settings)}; mean and standard deviation of the {headline}. "
        f"{_cross_validation(settings)}"
    )


def _describe_folder(settings: Settings, dataset: Dataset | None) -> str:
    """Describe images per class, or their share, and splits; or the folders that are the splits."""
    if dataset is not None and has_own_folders(dataset):
        own = _describe_table({**settings, **FOLDER_SPLITS}, dataset)
        return own.replace("a table with its", "class folders with their", 1)
    n_train, n_test = settings["train_per_class"], settings["test_per_class"]
    if n_train is not None:
        tested = "all others" if n_test is None else f"at most {n_test} others"
        sizes = f"{n_train} training images of each class and {tested} to test"
    elif n_test is not None:
        sizes = f"{n_test} images of each class to test and all others to train"
    else:
        fraction = settings["test_fraction"] or DEFAULT_TEST_FRACTION
        sizes = f"{100 * fraction:g}% of each class to test and the rest to train"
    return (
        f"Images in class folders: {sizes}, {_random_splits(settings)}. "
        f"{_cross_validation(settings)}"
    )


def _describe_table(settings: Settings, dataset: Dataset | None) -> str:
    """Describe the table's own splits where it has some, else the drawn ones."""
    if dataset is None or not dataset.official_splits:
        drawn = _describe_folder(settings, dataset).replace("class folders", "a table", 1)
        return drawn if dataset is not None else f"The table's own splits; without any: {drawn}"
    held_out = table_validation_split(settings, dataset)
    choice = _cross_validation(settings)
    if held_out is not None:
        choice = f"C is chosen on '{held_out}', which is then trained on too."
    return (
        f"Images in a table with its own splits: trained on '{settings['train']}', tested on "
        f"'{settings['test']}'. {choice}"
    )


def _random_splits(settings: Settings) -> str:
    """Name the number of splits and their seed."""
    number = settings["splits"]
    return f"{number} random split{'s' if number > 1 else ''} (seed {settings['seed']})"


_CALTECH101 = {"train_per_class": 30, "splits": 10, "include_background": True}
_FOLDER = {"test_fraction": None, "train_per_class": None, "test_per_class": None, "splits": 1}

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # Paper, section 3.2: the VOC 2007 devkit's task and measure.
        Protocol(
            name="voc2007",
            defaults={
                "train": "trainval",
                "test": "test",
                "validation": None,
                "choose_C": "per class",
            },
            draw=draw_official,
            describe=_describe_voc2007,
            multi_label_headline=MEAN_AVERAGE_PRECISION["11-point"],
        ),
        # VISSL, svm_trainer.py and evaluate.py, with the costs of its VOC07 configuration.
        Protocol(
            name="voc2007-vissl",
            defaults={"train": "trainval", "test": "test", "choose_C": "per class"},
            draw=draw_official,
            describe=_describe_vissl,
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
            describe=_describe_caltech101,
            single_label_headline=OVERALL_ACCURACY,
            restrict_classes=caltech101_classes,
        ),
        Protocol(
            name="caltech101-30-rest",
            defaults={**_CALTECH101, "test_per_class": None},
            draw=draw_per_class,
            describe=_describe_caltech101,
            single_label_headline=MEAN_PER_CLASS_ACCURACY,
            restrict_classes=caltech101_classes,
        ),
        Protocol(
            name="folder",
            defaults=_FOLDER,
            draw=draw_folder,
            describe=_describe_folder,
            single_label_headline=OVERALL_ACCURACY,
            multi_label_headline=MEAN_AVERAGE_PRECISION["area"],
        ),
        Protocol(
            name="csv",
            defaults={**_FOLDER, **FOLDER_SPLITS},
            draw=draw_table,
            describe=_describe_table,
            single_label_headline=OVERALL_ACCURACY,
            multi_label_headline=MEAN_AVERAGE_PRECISION["area"],
        ),
    )
}


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
    try:
        return PROTOCOLS[name]
    except (KeyError, TypeError):
        hint = suggestion(str(name), PROTOCOLS)
        raise ConfigError(f"unknown protocol '{name}'; {hint}") from None
