"""A run folder as the report reads it: results, one split's predictions, one block's weights."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from spptransfer.errors import ConfigError

FORMAT = "spptransfer-results"
FORMAT_VERSION = 1
_REQUIRED = ("name", "dataset", "features", "headline", "splits")
_OPTIONAL = (
    "pipeline",
    "versions",
    "machine",
    "rows",
    "classifier",
    "protocol",
    "metrics",
    "timings",
)


class MissingPartError(Exception):
    """A part of the run folder that one section needs is absent or damaged."""


@dataclass(frozen=True)
class Predictions:
    """What the classifiers said about one split's test images.

    Attributes
    ----------
    ids : ndarray of str, shape (n_test,)
        Image ids.
    scores : ndarray of float32, shape (n_test, n_classes)
        Decision values.
    targets : ndarray of int
        Shape (n_test,), the class index; or, where an image can have several labels,
        shape (n_test, n_classes) in {1, 0 = ignored, -1}.
    """

    ids: npt.NDArray[np.str_]
    scores: npt.NDArray[np.float32]
    targets: npt.NDArray[np.integer]

    @property
    def known_scores(self) -> npt.NDArray[np.float32]:
        """Scores in which a missing one (NaN) loses against every other."""
        return np.nan_to_num(self.scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)

    @property
    def predicted(self) -> npt.NDArray[np.intp]:
        """Class with the largest score of every image, shape (n_test,)."""
        return self.known_scores.argmax(axis=1)


@dataclass(frozen=True)
class RunFolder:
    """One execution of a pipeline file, opened for reading.

    Attributes
    ----------
    path : Path
        The folder.
    results : dict
        The contents of its ``results.json``; optional sections that it lacks are empty.
    """

    path: Path
    results: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Read a run folder's results.

        Parameters
        ----------
        path : Path
            A folder written by ``spptransfer run``.

        Returns
        -------
        RunFolder
            The folder; predictions and weights are read when asked for.

        Raises
        ------
        ConfigError
            If the folder holds no results, or results of another format.
        """
        file = Path(path) / "results.json"
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ConfigError(f"'{path}' is not a run folder: it has no results.json") from error
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"'{file}' cannot be read: {error}") from error
        _check_format(file, results)
        empty: dict[str, Any] = {key: {} for key in _OPTIONAL if not results.get(key)}
        return cls(Path(path), {**results, **empty})

    @property
    def classes(self) -> list[str]:
        """Class names in the order of the score columns."""
        return [str(name) for name in self.results["dataset"]["classes"]]

    @property
    def multi_label(self) -> bool:
        """Whether an image can have several labels."""
        return bool(self.results["dataset"].get("multi_label"))

    def predictions(self) -> Iterator[Predictions]:
        """Yield each split's predictions, one split in memory at a time.

        Yields
        ------
        Predictions
            The splits in their order.

        Raises
        ------
        MissingPartError
            If the file is absent, damaged, or does not fit the results.
        """
        try:
            with np.load(self.path / "predictions.npz", allow_pickle=False) as arrays:
                for number in range(len(self.results["splits"])):
                    yield self._split(arrays, f"split{number:02d}")
        except FileNotFoundError as error:
            raise MissingPartError("this run folder holds no predictions.npz") from error
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise MissingPartError(f"predictions.npz cannot be read: {error}") from error

    def _split(self, arrays: Any, name: str) -> Predictions:
        """Read one split and compare its shapes with the list of classes."""
        ids, scores, targets = (arrays[f"{name}/{key}"] for key in ("ids", "scores", "targets"))
        expected = (len(ids), len(self.classes))
        if scores.shape != expected:
            raise ValueError(f"{name}/scores has shape {scores.shape}, not {expected}")
        if targets.shape != (expected if self.multi_label else expected[:1]):
            raise ValueError(f"{name}/targets has shape {targets.shape}")
        if not self.multi_label and np.any((targets < 0) | (targets >= expected[1])):
            raise ValueError(f"{name}/targets names a class that does not exist")
        return Predictions(ids, scores, targets)

    def weight_blocks(self) -> Iterator[tuple[int | None, npt.NDArray[np.float32]]]:
        """Yield the linear weights block by block, one block in memory at a time.

        Yields
        ------
        level : int or None
            The n of the block's n×n grid; None for a layer without a grid.
        weights : ndarray of float32, shape (n_classes, width)
            The block's columns, channel-major.

        Raises
        ------
        MissingPartError
            If the model is absent, damaged, or does not fit the results.
        """
        blocks = self.results["features"].get("blocks") or []
        try:
            with safe_open(self.path / "model.safetensors", framework="numpy") as tensors:
                coefficients = tensors.get_slice("coef")
                self._check_weights(tuple(coefficients.get_shape()), blocks)
                for block in blocks:
                    yield block.get("level"), coefficients[:, block["start"] : block["stop"]]
        except FileNotFoundError as error:
            raise MissingPartError("this run folder holds no model.safetensors") from error
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            raise MissingPartError(f"model.safetensors cannot be read: {error}") from error

    def _check_weights(self, shape: tuple[int, ...], blocks: list[dict[str, Any]]) -> None:
        """Refuse weights that are not one row per class over the described blocks."""
        width = max((block["stop"] for block in blocks), default=0)
        if len(shape) != 2 or shape[0] != len(self.classes) or shape[1] < width:
            raise ValueError(f"coef has shape {shape}, not {(len(self.classes), width)}")

    def image_path(self, image_id: str) -> Path | None:
        """Say where an image should lie.

        Parameters
        ----------
        image_id : str
            The image's id in the run.

        Returns
        -------
        Path or None
            Its path, whether or not a file is there; None if the run did not note a root.
        """
        dataset = self.results["dataset"]
        if not dataset.get("root"):
            return None
        # Not str.format: an id or a template from a file may hold braces of its own.
        relative = str(dataset.get("path_template") or "{id}").replace("{id}", image_id)
        return Path(dataset["root"]) / relative


def _check_format(file: Path, results: Any) -> None:
    """Refuse what is not a results file of a version this reader knows."""
    if not isinstance(results, dict) or results.get("format") != FORMAT:
        raise ConfigError(f"'{file}' is not a results file (format must be '{FORMAT}')")
    if results.get("format_version") != FORMAT_VERSION:
        raise ConfigError(
            f"'{file}' has format version {results.get('format_version')}; "
            f"this spptransfer reads version {FORMAT_VERSION}"
        )
    lacking = [key for key in _REQUIRED if key not in results]
    if lacking:
        raise ConfigError(f"'{file}' lacks '{lacking[0]}' (needed: {', '.join(_REQUIRED)})")
