"""The folder of a run: checkpoint, metrics, curves, card and weights, each whole or not there."""

from __future__ import annotations

import json
import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from spptransfer.errors import ModelError, WeightsError
from spptransfer.files import atomic_write
from spptransfer.pretraining.card import model_card
from spptransfer.pretraining.curves import training_curves

_FORMAT = 1
CHECKPOINT, WEIGHTS = "checkpoint.pt", "weights.safetensors"
CARD, METRICS, CURVES = "model-card.md", "metrics.jsonl", "curves.svg"


def save_checkpoint(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a run's state in place of the last one.

    The file is complete and on the disk before it takes its name.
    """
    with atomic_write(folder / CHECKPOINT) as temporary, open(temporary, "wb") as file:
        torch.save({"format": _FORMAT, **state}, file)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Read a run's state onto the CPU, if there is one; code that a file carries is never run.

    Raises
    ------
    WeightsError
        If the file is damaged or of another format.
    """
    path = folder / CHECKPOINT
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
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise WeightsError(f"'{path}' is no checkpoint of format {_FORMAT}")
    return state


def write_history(folder: Path, history: Sequence[Mapping[str, float]], epochs: int) -> None:
    """Write metrics and curves; a killed run's are made anew from its checkpoint."""
    _write(folder / METRICS, "".join(f"{json.dumps(line)}\n" for line in history).encode())
    if history:
        _write(folder / CURVES, training_curves(history, epochs).encode())


def has_weights(folder: Path, about: Mapping[str, Any]) -> bool:
    """Tell whether the weights after so many epochs were written, with these settings."""
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            known = json.loads((file.metadata() or {})["spptransfer"])
        return all(known[key] == about[key] for key in ("epochs", "pipeline"))
    except (OSError, SafetensorError, KeyError, ValueError):
        return False


def write_weights(folder: Path, network: nn.Module, about: Mapping[str, Any]) -> None:
    """Write a network in a form that `backbones.load` reads, and its card.

    Raises
    ------
    ModelError
        If a number is too large for the type of the saved ones.
    """
    kind = about["pipeline"]["training"]["weights"]
    tensors = {
        key: value.detach().to("cpu", getattr(torch, kind)).contiguous()
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    for key, value in tensors.items():
        if not value.isfinite().all():
            raise ModelError(
                f"{key} holds numbers beyond {kind}; the same command with "
                "training.weights=float32 goes on"
            )
    # One entry only: several would come in another order, and another hash, in every process.
    metadata = {"spptransfer": json.dumps(about, sort_keys=True)}
    # The weights come last: by them a run that goes on knows that both were written.
    # A folder of images may have a name that is no UTF-8.
    _write(folder / CARD, model_card(about).encode(errors="backslashreplace"))
    # Safetensors' own way of writing a file would leave the file to nobody but us.
    _write(folder / WEIGHTS, save(tensors, metadata))


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path, needed=len(data)) as temporary:
        temporary.write_bytes(data)
