"""What a run leaves in its folder; each file is whole or not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from spptransfer.errors import ModelError
from spptransfer.files import atomic_write
from spptransfer.pretraining import checkpoint
from spptransfer.pretraining.card import Facts, model_card
from spptransfer.pretraining.curves import training_curves
from spptransfer.pretraining.training import Metrics

WEIGHTS, CARD = "weights.safetensors", "model-card.md"
METRICS, CURVES = "metrics.jsonl", "curves.svg"


class RunFolder:
    """The folder of a run.

    Parameters
    ----------
    folder : Path
        There already.
    facts : Facts
        What the card tells.
    saved : dict
        What every checkpoint holds besides the state of the training.
    """

    def __init__(self, folder: Path, facts: Facts, saved: dict[str, Any]) -> None:
        self._folder = folder
        self._facts = facts
        self._saved = saved

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the state in place of the last one."""
        checkpoint.save(self._folder, {**self._saved, **state})

    def write_history(self, history: Sequence[Metrics]) -> None:
        """Write metrics and curves; a killed run's are made anew from its checkpoint."""
        self._write(METRICS, "".join(f"{json.dumps(line)}\n" for line in history).encode())
        if history:
            epochs = self._facts.pipeline.training.epochs
            self._write(CURVES, training_curves(history, epochs).encode())

    def has_weights(self, epochs: int) -> bool:
        """Whether the weights after so many epochs were written, with these settings."""
        try:
            with safe_open(self._folder / WEIGHTS, framework="pt") as file:
                about = json.loads((file.metadata() or {})["spptransfer"])
        except (OSError, SafetensorError, KeyError, ValueError):
            return False
        return about.get("epochs") == epochs and about.get("pipeline") == self._facts.settings()

    def write_weights(self, network: nn.Module, history: Sequence[Metrics]) -> None:
        """Write the network as it is, in a form that `backbones.load` reads, and its card.

        Raises
        ------
        ModelError
            If a number is too large for the type of the saved ones.
        """
        dtype = getattr(torch, self._facts.pipeline.training.weights)
        tensors = {
            key: value.detach().to("cpu", dtype).contiguous()
            for key, value in network.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        for key, value in tensors.items():
            if not value.isfinite().all():
                raise ModelError(
                    f"{key} holds numbers beyond {self._facts.pipeline.training.weights}; the same "
                    "command with training.weights=float32 goes on"
                )
        about = self._facts.as_json(history)
        # One entry only: several would come in another order, and another hash, in every process.
        metadata = {"spptransfer": json.dumps(about, sort_keys=True)}
        # The weights come last: by them a run that goes on knows that both were written.
        # A folder of images may have a name that is no UTF-8.
        self._write(CARD, model_card(about).encode(errors="backslashreplace"))
        # Safetensors' own way of writing a file would leave the file to nobody but us.
        self._write(WEIGHTS, save(tensors, metadata))

    def _write(self, name: str, data: bytes) -> None:
        path = self._folder / name
        with atomic_write(path, needed=len(data)) as temporary:
            temporary.write_bytes(data)
