"""What a protocol does with its settings, in plain words for the readers of a result."""

from __future__ import annotations

from spptransfer.datasets.base import Dataset
from spptransfer.metrics import MEAN_PER_CLASS_ACCURACY, OVERALL_ACCURACY
from spptransfer.protocols.splits import (
    DEFAULT_TEST_FRACTION,
    FOLDER_SPLITS,
    Settings,
    has_own_folders,
    sizes_of,
    table_validation_split,
    validation_split,
)


def choice_of_C(settings: Settings, where: str = "", part: str = "the training images") -> str:
    """Describe the choice of C by folds."""
    if settings["folds"] == 0:
        return "C is given, not chosen."
    whose = "for each class " if settings["choose_C"] == "per class" else ""
    return f"C is chosen {where}{whose}by {settings['folds']}-fold cross-validation on {part}."


def describe_voc2007(settings: Settings, dataset: Dataset | None) -> str:
    """Describe splits, treatment of difficult images and choice of C."""
    train, validation = settings["train"], validation_split(settings)
    whose = "for each class" if settings["choose_C"] == "per class" else "for all classes together"
    choice = f"C is chosen {whose} on '{validation}', then all of '{train}' is trained on."
    if validation is None:
        choice = choice_of_C(settings, part=f"'{train}'")
    return (
        f"PASCAL VOC 2007 classification: trained on '{train}', tested on '{settings['test']}', "
        f"one classifier per class against the rest; images that show a class only as difficult "
        f"are ignored for that class in training and test. {choice}"
    )


_RIGHT = (
    "intersection over union of at least 0.5, one detection for each object; difficult objects "
    "neither train nor count"
)


def describe_detection(settings: Settings, dataset: Dataset | None) -> str:
    """Describe splits, the rules of the test and the choice of C."""
    where = f"trained on '{settings['train']}', tested on '{settings['test']}'"
    if dataset is not None and not dataset.official_splits:
        where = f"tested on {_fraction_of(settings):g}% of the images (seed {settings['seed']})"
    held_out = None if dataset is None else table_validation_split(settings, dataset)
    return f"Detection: {where} ({_RIGHT}). {_held_out(settings, held_out)}"


def describe_voc2007_detection(settings: Settings, dataset: Dataset | None) -> str:
    """Describe splits, the devkit's rules and the choice of C."""
    return (
        f"PASCAL VOC 2007 detection: trained on '{settings['train']}', tested on "
        f"'{settings['test']}' by the devkit's rules ({_RIGHT}). "
        f"{_held_out(settings, validation_split(settings))}"
    )


def _held_out(settings: Settings, split: str | None) -> str:
    """Describe the images that the C of a detector is chosen on."""
    if settings["folds"] == 0:
        return "C is given, not chosen."
    part = f"'{split}'" if split else f"one of {settings['folds']} parts of the training images"
    return f"C is chosen for all classes together on {part}, then all of them are trained on."


def _fraction_of(settings: Settings) -> float:
    return 100 * float(settings["test_fraction"] or DEFAULT_TEST_FRACTION)


def describe_vissl(settings: Settings, dataset: Dataset | None) -> str:
    """Describe what VISSL's trainer does."""
    choice = choice_of_C(settings, part=f"'{settings['train']}'")
    if settings["folds"]:
        choice += " It is the one of the largest average precision (uninterpolated)"
        own = settings["choose_C"] == "per class"
        choice += ", over stratified folds of the class's own." if own else "."
    return (
        f"PASCAL VOC 2007 classification after VISSL's SVM benchmark: trained on "
        f"'{settings['train']}', tested on '{settings['test']}'; positives weigh twice, images "
        f"that show a class only as difficult are negatives in training and ignored in the test. "
        f"{choice}"
    )


def describe_caltech101(settings: Settings, dataset: Dataset | None) -> str:
    """Describe categories, images per category and splits."""
    with_or_without, number = ("with", 102) if settings["include_background"] else ("without", 101)
    n_train, n_test = _largest(settings, dataset), settings["test_per_class"]
    if n_test is None:
        sizes = f"{n_train} training images per category and all others to test"
    else:
        sizes = f"{n_train} training and at most {n_test} test images per category"
    headline = MEAN_PER_CLASS_ACCURACY if n_test is None else OVERALL_ACCURACY
    return (
        f"Caltech-101 {with_or_without} the background category ({number} categories): {sizes}, "
        f"{_random_splits(settings)}; mean and standard deviation of the {headline}. "
        f"{choice_of_C(settings)}"
    )


def describe_folder(settings: Settings, dataset: Dataset | None) -> str:
    """Describe images per class, or their share, and splits; or the folders that are the splits."""
    if dataset is not None and has_own_folders(dataset):
        own = describe_table({**settings, **FOLDER_SPLITS}, dataset)
        return own.replace("a table with its", "class folders with their", 1)
    n_train, n_test = _largest(settings, dataset), settings["test_per_class"]
    if n_train is not None:
        tested = "all others" if n_test is None else f"at most {n_test} others"
        sizes = f"{n_train} training images of each class and {tested} to test"
    elif n_test is not None:
        sizes = f"{n_test} images of each class to test and all others to train"
    else:
        sizes = f"{_fraction_of(settings):g}% of each class to test and the rest to train"
    return f"Images in class folders: {sizes}, {_random_splits(settings)}. {choice_of_C(settings)}"


def describe_table(settings: Settings, dataset: Dataset | None) -> str:
    """Describe the table's own splits where it has some, else the drawn ones."""
    if dataset is None or not dataset.official_splits:
        drawn = describe_folder(settings, dataset).replace("class folders", "a table", 1)
        return drawn if dataset is not None else f"The table's own splits; without any: {drawn}"
    held_out = table_validation_split(settings, dataset)
    choice = choice_of_C(settings)
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


def _largest(settings: Settings, dataset: Dataset | None) -> int | None:
    """Training images of each class, the most of them; none where classes draw their own."""
    sizes = sizes_of(settings)
    own = dataset is not None and dataset.multi_label
    number: int | None = settings["train_per_class"]
    return number if not sizes else None if own else sizes[-1]
