"""From validated data to a solver: which space, which precision, how much memory."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from spptransfer.errors import ConfigError, suggestion
from spptransfer.svm._feature_space import FeatureSpace
from spptransfer.svm._gram_matrix import dense_gram
from spptransfer.svm._gram_space import GramSpace
from spptransfer.svm._newton import Space
from spptransfer.svm._problems import Problems
from spptransfer.svm._rows import BLOCK_BYTES, Rows
from spptransfer.svm._solver import Options, Solver
from spptransfer.svm._streamed import StreamedSolver
from spptransfer.svm._types import Array
from spptransfer.system import available_memory

LOSSES = ("squared_hinge", "hinge")
# Up to this many rows a float64 Gram matrix costs next to nothing.
SMALL = 1000
# Bytes that a row and problem take while it is being solved in the space of features.
STATE_BYTES = 128
# The solver's float32 products of C with squares of numbers in rows end at 3e38.
LARGEST_C = 1e20


@dataclass(frozen=True)
class Settings:
    """The parameters that `LinearSVM` and `LinearSVMCV` share."""

    loss: str
    fit_intercept: bool
    intercept_scaling: float
    regularize_intercept: bool
    tol: float
    max_iter: int
    memory: int | str | None
    device: str

    @classmethod
    def of(cls, estimator: Any) -> Settings:
        """Read and check an estimator's parameters."""
        settings = cls(**{name: getattr(estimator, name) for name in cls.__dataclass_fields__})
        if settings.loss not in LOSSES:
            raise ConfigError(f"loss is {settings.loss!r}; {suggestion(settings.loss, LOSSES)}")
        for name in ("intercept_scaling", "tol", "max_iter"):
            check_positive(name, getattr(settings, name))
        if not isinstance(settings.max_iter, (int, np.integer)):
            raise ConfigError(f"max_iter is {settings.max_iter!r}; allowed: whole numbers > 0")
        check_device(settings.device)
        return settings

    @property
    def penalises_bias(self) -> bool:
        """Whether the bias is one more regularised feature, or absent."""
        return self.regularize_intercept or not self.fit_intercept

    def bias_square(self, rows: Rows) -> float:
        """Square of the constant feature that stands for the bias.

        Without regularisation its size only decides how fast the multiplier iteration converges;
        rows of about that length suit it.
        """
        if not self.fit_intercept:
            return 0.0
        if self.regularize_intercept:
            return float(self.intercept_scaling) ** 2
        square = rows.mean_square()
        return square if square > np.finfo(float).tiny else 1.0


def check_positive(name: str, value: Any) -> None:
    """Refuse anything but a finite number above zero."""
    if not (isinstance(value, (int, float, np.number)) and np.isfinite(value) and value > 0):
        raise ConfigError(f"{name} is {value!r}; allowed: finite numbers > 0")


def check_cost(name: str, value: Any) -> None:
    """Refuse a C that is no number above zero, or so large that products with it overflow."""
    check_positive(name, value)
    if value > LARGEST_C:
        raise ConfigError(f"{name} is {value!r}; allowed: numbers > 0, at most {LARGEST_C:g}")


def budget_bytes(memory: int | str | None) -> float:
    """Read a memory budget; None is half of what is free."""
    if memory is None:
        return 0.5 * available_memory()
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)I?B?\s*", str(memory).upper())
    try:
        size = float(match[1]) * 1024.0 ** " KMGT".index(match[2] or " ") if match else 0.0
    except ValueError:
        size = 0.0
    if size <= 0:
        raise ConfigError(f"memory is {memory!r}; allowed: None, bytes, or a size like '1GB'")
    return size


def check_device(device: str) -> None:
    """Refuse a device that torch cannot use here."""
    if device == "cpu":
        return
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device is {device!r}, which torch cannot use here; allowed: 'cpu' or a device that "
            "torch reports"
        ) from error


def block_bytes(budget: float) -> int:
    """How large blocks of rows may be; there are a few at a time for each thread."""
    return int(min(BLOCK_BYTES, max(budget / 64, 2**18)))


def make_solver(rows: Rows, gram: Array | None, problems: Problems, settings: Settings) -> Solver:
    """Choose where to solve: by a Gram matrix, by features in memory, or streaming them."""
    options = Options(settings.loss, settings.tol, settings.max_iter, settings.penalises_bias)
    budget = budget_bytes(settings.memory)
    if gram is not None or _gram_fits(rows, budget):
        if gram is None and rows.is_outside and rows.nbytes + 8 * rows.shape[0] ** 2 <= budget:
            rows.load(budget - 8 * rows.shape[0] ** 2)
        return Solver(_make_space(rows, gram, settings), problems, options)
    bias_square = settings.bias_square(rows)
    states = STATE_BYTES * rows.shape[0]
    if rows.nbytes * rows.is_outside + states * problems.count <= budget:
        if rows.is_outside:
            rows.load(budget - states * problems.count)
        return Solver(FeatureSpace(rows, bias_square), problems, options)
    space = FeatureSpace(rows, bias_square, max(1, int(0.65 * budget / states)))
    row_bytes = rows.nbytes / rows.shape[0] + STATE_BYTES * problems.count

    def make_space(held: Rows) -> Space:
        if _gram_fits(held, 0.25 * budget):
            gram = dense_gram(held, np.float64 if held.shape[0] <= SMALL else np.float32)
            return GramSpace(held, gram, bias_square, device=settings.device)
        return FeatureSpace(held, bias_square)

    solver = StreamedSolver(space, problems, options, int(0.6 * budget / row_bytes), make_space)
    solver.at_once = max(1, int(0.1 * budget / (4 * rows.shape[0] * problems.count)))
    return solver


def _gram_fits(rows: Rows, budget: float) -> bool:
    # A float32 Gram matrix may have to make way for a float64 one.
    return rows.shape[0] <= rows.shape[1] and 8 * rows.shape[0] ** 2 <= budget


def _make_space(rows: Rows, gram: Array | None, settings: Settings) -> GramSpace:
    """The space of rows, with the Gram matrix that is given or a new one."""
    n_rows, _ = rows.shape
    bias_square = settings.bias_square(rows)
    if gram is None:
        gram = dense_gram(rows, np.float64 if n_rows <= SMALL else np.float32, settings.device)
        if not np.isfinite(np.diagonal(gram)).all():
            raise ConfigError(f"X is so large that its squares overflow {gram.dtype}; scale it")
    elif gram.shape != (n_rows, n_rows):
        raise ConfigError(f"gram has shape {gram.shape}; {n_rows} rows need {(n_rows, n_rows)}")
    elif not (np.isfinite(gram.min()) and np.isfinite(gram.max())):
        raise ConfigError("gram contains NaN or infinity")
    if gram.dtype == np.float64 and n_rows > SMALL:
        return GramSpace(rows, gram.astype(np.float32), bias_square, gram, settings.device)
    return GramSpace(rows, gram, bias_square, device=settings.device)


def warn_unless_certified(gaps: Array, tol: float) -> None:
    """Say once how many problems missed the tolerance."""
    missed = ~(gaps <= tol)
    if missed.any():
        warnings.warn(
            f"{missed.sum()} of {missed.size} problems did not reach a relative duality gap of "
            f"{tol:g} (largest: {gaps.max():.2g}); raise max_iter or scale the features",
            ConvergenceWarning,
            stacklevel=3,
        )
