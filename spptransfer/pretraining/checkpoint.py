"""Checkpoints: everything a run needs to go on, in a file that is whole or not there."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from spptransfer.errors import WeightsError
from spptransfer.files import atomic_write

FORMAT = 1
NAME = "checkpoint.pt"


def save(folder: Path, state: dict[str, Any]) -> None:
    """Write a run's state in place of the last one.

    The file is complete and on the disk before it takes its name.

    Parameters
    ----------
    folder : Path
        Folder of the run.
    state : dict
        Tensors, numbers, strings, lists and dicts.

    Raises
    ------
    CacheError
        If the disk is full or the folder cannot be written to.
    """
    with atomic_write(folder / NAME) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)


def load(folder: Path) -> dict[str, Any] | None:
    """Read a run's state onto the CPU; code that a file carries is never run.

    Returns
    -------
    dict or None
        None if the run has no checkpoint yet.

    Raises
    ------
    WeightsError
        If the file is damaged or of another format.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with warnings.catch_warnings():
            # Such a file is refused by ourselves.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own advice would run what it carries
        raise WeightsError(
            f"the checkpoint '{path}' cannot be read: damaged, or more than a run's state"
        ) from error
    except Exception as error:  # The parser of damaged bytes raises whatever it stumbles upon.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise WeightsError(f"the checkpoint '{path}' cannot be read: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise WeightsError(f"'{path}' is no checkpoint of format {FORMAT}")
    return state
