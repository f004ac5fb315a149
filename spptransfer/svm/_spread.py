"""The folds of a search on the workers of a Dask cluster."""

from __future__ import annotations

import pickle
from typing import Any

import joblib
import numpy as np

from spptransfer.errors import ConfigError
from spptransfer.svm._path import Search, SpreadPath, walked
from spptransfer.svm._rows import Rows
from spptransfer.svm._types import Array


def spread(
    rows: Rows, gram: Array | None, search: Search, ascending: Array, scheduler: str | None
) -> SpreadPath:
    """Walk every fold, and all rows, as a task of its own.

    Parameters
    ----------
    rows : Rows
        Sent to the workers, or opened by them where it is a file that can be pickled as a path.
    gram : ndarray or None
        Sent along where it is given.
    search : Search
        What to walk.
    ascending : ndarray
        Values of C.
    scheduler : str or None
        Address such as ``"tcp://10.0.0.1:8786"``; None starts a cluster on this machine.

    Raises
    ------
    ConfigError
        If Dask is not installed, no scheduler answers, or the rows cannot be sent.
    """
    _check_sendable(rows.source)
    try:
        from distributed import Client
    except ImportError as error:
        raise ConfigError("engine 'dask' needs: pip install 'dask[distributed]'") from error
    try:
        client = Client(scheduler)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no Dask scheduler answers at '{scheduler}': {error}") from error
    with client, joblib.parallel_config("dask", client=client):
        tasks = (
            joblib.delayed(walked)(rows.source, gram, part, ascending) for part in search.parts()
        )
        parts = joblib.Parallel(batch_size=1)(tasks)
    rows.rows_read += sum(rows_read for _, rows_read in parts)
    return SpreadPath(search, [steps for steps, _ in parts])


def _check_sendable(source: Any) -> None:
    if isinstance(source, np.ndarray):
        return
    try:
        pickle.dumps(source)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise ConfigError(
            f"X is a {type(source).__name__}, which cannot be sent to Dask's workers ({error}); "
            "allowed with engine 'dask': arrays and the views of a feature cache"
        ) from error
