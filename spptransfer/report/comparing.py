"""Runs beside one another: what differs between them, and what each gains on the same splits.

Paired are splits of the same training and test images, whatever the folds on which C was chosen.

* Over several splits: the corrected resampled t-test of Nadeau and Bengio (2003). Splits drawn
  from the same images overlap, so that the variance of their mean is larger than that of as many
  independent ones: 1/n becomes 1/n + (test images)/(training images).
* On one split: Wilcoxon's signed-rank test over the classes, of the metric's values by class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from spptransfer._version import __version__
from spptransfer.errors import ConfigError, DatasetError
from spptransfer.protocols.splits import read_splits
from spptransfer.report.figures import padded
from spptransfer.report.formatting import NOTHING, flatten
from spptransfer.report.run_folder import GRID, RunFolder, per_class_metric, read_results
from spptransfer.report.tables import Cell, Measured, Table
from spptransfer.report.template import fill
from spptransfer.text import plural

RESAMPLED = "corrected resampled t-test (Nadeau and Bengio, 2003)"
WILCOXON = "Wilcoxon signed-rank test"
CLASSES_SHOWN = 5
_SECTIONS = ("dataset", "features", "classifier", "protocol", "detection")
_EQUAL = 1e-12  # below this, differences are rounding errors


@dataclass(frozen=True)
class Difference:
    """What a run gains on the first one, as fractions of 1; negative where it loses.

    Attributes
    ----------
    mean, std : float, float or None
        Over the splits that both have; no deviation on one split.
    splits : int
        Number of them.
    test : str or None
        Name of the paired test; None where there is nothing that could be tested.
    p : float or None
        Its two-sided probability; None where all differences are equal.
    per_class : mapping of str to float
        By class, in the order of the run; empty where the runs do not have all splits in common.
    """

    mean: float
    std: float | None
    splits: int
    test: str | None
    p: float | None
    per_class: Mapping[str, float]


@dataclass(frozen=True)
class ComparedRun:
    """A run, its settings as dotted names with text, and its difference to the first or why not."""

    name: str
    folder: RunFolder
    settings: Mapping[str, str]
    difference: Difference | None = None
    unpaired: str = ""

    @cached_property
    def metrics(self) -> Mapping[str, Any]:
        """All metrics by name, the headline among them."""
        headline = self.folder.results["headline"]
        return {headline["metric"]: headline, **self.folder.results["metrics"]}


@dataclass(frozen=True)
class Comparison:
    """Runs, each with its difference to the first one.

    Attributes
    ----------
    runs : sequence of ComparedRun
        At least two.
    metric : str
        Full name of the metric that is compared: the headline of the first run.
    class_metric : str or None
        The one whose values by class are.
    """

    runs: Sequence[ComparedRun]
    metric: str
    class_metric: str | None

    @cached_property
    def differing(self) -> dict[str, str]:
        """Settings that differ, each with as much of its name as tells it from the others."""
        every = dict.fromkeys(key for run in self.runs for key in run.settings)
        values = {key: {run.settings.get(key, NOTHING) for run in self.runs} for key in every}
        keys = [key for key in every if len(values[key]) > 1]
        last = [key.rpartition(".")[2] for key in keys]
        return {
            key: short if last.count(short) == 1 and short != "name" else key
            for key, short in zip(keys, last, strict=True)
        }

    def table(self) -> Table:
        """Return a row for each run: what differs, the headlines, the paired difference."""
        headlines = dict.fromkeys(run.folder.results["headline"]["metric"] for run in self.runs)
        header = ["run", *self.differing.values(), *headlines, "difference", "p"]
        rows: list[list[Cell]] = []
        for run in self.runs:
            row: list[Cell] = [run.name, *map(run.settings.get, self.differing)]
            row += [_measured(run.metrics.get(name)) for name in headlines]
            found = run.difference
            row += [None, None] if found is None else [_signed(found.mean, found.std), found.p]
            rows.append(row)
        return Table(header, rows, [*self._said_of_tests(), *self._said_of_classes()])

    def class_table(self) -> Table:
        """Return a row for each class: the first run's value, and what the others gain.

        Raises
        ------
        ConfigError
            If no run has differences by class.
        """
        paired = [run for run in self.runs if run.difference and run.difference.per_class]
        if not paired:
            raise ConfigError("--classes: no two of the runs can be paired class by class")
        first = self.runs[0]
        values = first.metrics[str(self.class_metric)]["per_class"]
        gains = [run.difference.per_class for run in paired if run.difference]
        rows: list[list[Cell]] = [
            [name, Measured(value), *(_signed(each.get(name)) for each in gains)]
            for name, value in values.items()
        ]
        order = np.argsort([-gains[0].get(name, -math.inf) for name in values], kind="stable")
        note = f"{self.class_metric} by class of {first.name}, and what the others have more"
        header = ["class", first.name, *(run.name for run in paired)]
        return Table(header, [rows[at] for at in order], [note])

    def _said_of_tests(self) -> list[str]:
        """Say what the columns of differences hold, or why a run has none."""
        said, first = [], self.runs[0].name
        tested: dict[tuple[int, str | None], list[str]] = {}
        for run in self.runs[1:]:
            if run.difference is None:
                said.append(f"{run.name}: no paired difference, since {run.unpaired}")
            else:
                key = (run.difference.splits, run.difference.test)
                tested.setdefault(key, []).append(run.name)
        for (count, test), names in tested.items():
            spread = ", mean ± standard deviation" if count > 1 else ""
            by = f"; p: {test}, two-sided" if test else "; no test: no values by class"
            many = ", not corrected for several runs" if test and len(names) > 1 else ""
            said.append(
                f"{', '.join(names)}: difference to {first} in {self.metric} on "
                f"{plural(count, 'common split')}{spread}{by}{many}"
            )
        return said

    def _said_of_classes(self) -> list[str]:
        """Name the classes that gain and lose most, of each run."""
        said = []
        for run in self.runs:
            gains, parts = run.difference.per_class if run.difference else {}, []
            for word, sign in (("gains", 1), ("losses", -1)):
                ranked = sorted((-sign * gain, name) for name, gain in gains.items())
                most = [name for gain, name in ranked if gain < -_EQUAL][:CLASSES_SHOWN]
                told = ", ".join(f"{name} {_signed(gains[name])}" for name in most)
                parts += [f"{word} {told}"] if told else []
            if parts:
                said.append(f"{run.name}, {self.class_metric} by class: {'; '.join(parts)}")
        return said

    def as_json(self) -> dict[str, Any]:
        """Return all of it in plain values; numbers are fractions of 1."""
        runs = []
        for run in self.runs:
            found = None if run.difference is None else asdict(run.difference)
            runs.append(
                {
                    "name": run.name,
                    "run": str(run.folder.path.resolve()),
                    "headline": run.folder.results["headline"],
                    "metrics": {name: one.get("value") for name, one in run.metrics.items()},
                    "settings": {key: run.settings.get(key) for key in self.differing},
                    "difference": found,
                    "unpaired": run.unpaired or None,
                }
            )
        return {"metric": self.metric, "class_metric": self.class_metric, "runs": runs}


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Compare finished runs with the first of them.

    Parameters
    ----------
    folders : sequence of Path
        Run folders, of classifiers or detectors; the folder of a table of runs stands for all
        runs in it.

    Returns
    -------
    Comparison
        Its tables are written by `write_table`.

    Raises
    ------
    ConfigError
        If there are fewer than two runs, or a folder holds none.

    Examples
    --------
    >>> compare_runs([])
    Traceback (most recent call last):
    ...
    spptransfer.errors.ConfigError: give at least two runs to compare
    """
    opened = [run for folder in folders for run in _open(folder)]
    if len(opened) < 2:
        raise ConfigError("give at least two runs to compare")
    names = [run.path.resolve().name for run in opened]
    runs = [
        ComparedRun(name if names.count(name) == 1 else str(run.path), run, _settings(run.results))
        for name, run in zip(names, opened, strict=True)
    ]
    metric = runs[0].folder.results["headline"]["metric"]
    has_own = runs[0].metrics[metric].get("per_class")
    by_class = metric if has_own else per_class_metric(runs[0].folder.results)
    compared = [runs[0], *(_pair(runs[0], run, metric, by_class) for run in runs[1:])]
    return Comparison(compared, metric, by_class)


def _open(folder: Path) -> list[RunFolder]:
    """Read a run, or those of a table."""
    results = read_results(folder)
    if results["format"] != GRID:
        return [RunFolder.of(folder, results)]
    return [run for cell in results["cells"] if cell["run"] for run in _open(folder / cell["run"])]


def _settings(results: Mapping[str, Any]) -> dict[str, str]:
    """Return all that determines a run's numbers, as dotted names with text."""
    given = {name: results["pipeline"].get(name) or {} for name in _SECTIONS}
    protocol = {**given["protocol"], **(results["protocol"].get("settings") or {})}
    features = {**given["features"], "dimension": results["features"].get("dimension")}
    found = {**given, "features": features, "protocol": protocol, "versions": results["versions"]}
    return dict(flatten({name: values for name, values in found.items() if values}))


def _pair(first: ComparedRun, run: ComparedRun, metric: str, by_class: str | None) -> ComparedRun:
    """Return a run with its difference to the first one, or with why it has none."""
    if metric not in run.metrics:
        return replace(run, unpaired=f"it has no {metric}")
    before, after = _by_split(first.folder, metric), _by_split(run.folder, metric)
    common = [key for key in before if key in after]
    if not common:
        return replace(run, unpaired=f"it has other splits than {first.name}")
    differences = np.array([after[key][0] - before[key][0] for key in common])
    gains: dict[str, float] = {}
    if by_class is not None and before.keys() == after.keys():
        gains = _class_differences(first.metrics[by_class], run.metrics.get(by_class) or {})
    test, p = None, None
    if len(common) > 1:
        test, p = RESAMPLED, resampled_t_test(differences, [before[key][1] for key in common])
    elif gains:
        test = f"{WILCOXON} over {len(gains)} classes of the {by_class}"
        p = _wilcoxon(list(gains.values()))
    std = float(differences.std(ddof=1)) if len(common) > 1 else None
    found = Difference(float(differences.mean()), std, len(common), test, p, gains)
    return replace(run, difference=found)


def _by_split(run: RunFolder, metric: str) -> dict[str, tuple[float, float]]:
    """Return the value on each split, and its test images per training image, by a checksum.

    That of the lists of images where the folder still has them, or else the one that knows the
    folds too.
    """
    keys = [split.get("checksum") for split in run.results["splits"]]
    try:
        lists = read_splits(run.path / "splits.json")
        if [split.checksum for split in lists] == keys:
            keys = [replace(split, folds=(), class_folds=0).checksum for split in lists]
    except DatasetError:
        pass
    found = {}
    for key, split in zip(keys, run.results["splits"], strict=True):
        value = (split.get("metrics") or {}).get(metric)
        if key and value is not None:
            found[str(key)] = (float(value), split["test"] / split["train"])
    return found


def _class_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Subtract values by class, where both runs have one."""
    old, new = before.get("per_class") or {}, after.get("per_class") or {}
    known = [name for name in old if old[name] is not None and new.get(name) is not None]
    return {name: float(new[name] - old[name]) for name in known}


def resampled_t_test(differences: Sequence[float] | Any, ratios: Sequence[float]) -> float | None:
    """Return the two-sided p of the corrected resampled t-test; None where all are equal.

    Parameters
    ----------
    differences : sequence of float
        On every split, of at least two.
    ratios : sequence of float
        Test images per training image of every split.

    Returns
    -------
    float or None

    Examples
    --------
    >>> round(resampled_t_test([0.01, 0.02, 0.03], [0.5, 0.5, 0.5]), 3)
    0.16
    >>> resampled_t_test([0.01, 0.01], [0.5, 0.5])
    """
    from scipy.stats import t

    count, spread = len(differences), float(np.std(differences, ddof=1))
    if not spread > _EQUAL:
        return None
    error = spread * math.sqrt(1 / count + float(np.mean(ratios)))
    return float(2 * t.sf(abs(np.mean(differences)) / error, count - 1))


def _wilcoxon(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of Wilcoxon's signed-rank test; None where no class differs."""
    from scipy.stats import wilcoxon

    different = [each for each in differences if abs(each) > _EQUAL]
    return float(wilcoxon(different).pvalue) if different else None


def _measured(metric: Mapping[str, Any] | None) -> Measured:
    return Measured(None) if metric is None else Measured(metric.get("value"), metric.get("std"))


def _signed(mean: float | None, std: float | None = None) -> Measured:
    return Measured(mean, std, signed=True)


def compare_page(found: Comparison) -> str:
    """Fill the page of a comparison: its table, every split, and the differences by class."""
    known = [(run.name, run.metrics.get(found.metric) or {}) for run in found.runs]
    strips = [(name, one) for name, one in known if one.get("value") is not None]
    values = [value for _, one in strips for value in one.get("per_split") or ()]
    values = [value for value in values if value is not None]
    values += [one["value"] + k * (one.get("std") or 0) for _, one in strips for k in (-1, 1)]
    gains = [(run, run.difference.per_class) for run in found.runs if run.difference]
    by_class = [
        (run, sorted(each.items(), key=lambda item: -item[1])) for run, each in gains if each
    ]
    return fill(
        "compare",
        "report",
        found=found,
        table=found.table(),
        strips=strips,
        domain=padded(values),
        by_class=by_class,
        extent=max([_EQUAL, *(abs(value) for _, each in gains for value in each.values())]),
        version=__version__,
    )
