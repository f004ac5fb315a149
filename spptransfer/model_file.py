"""The file of a trained model: weights as safetensors, everything else as JSON in its metadata.

Reading it runs nothing that the file could name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as to_bytes

from spptransfer.errors import ModelError
from spptransfer.files import atomic_write

NAME = "model.safetensors"
# The command that uses a file of each format.
_COMMANDS = {"spptransfer-model": "predict", "spptransfer-detector": "detect"}

Tensors = dict[str, npt.NDArray[Any]]


def write_model(path: Path, tensors: Mapping[str, npt.NDArray[Any]], facts: Any) -> None:
    """Write a model, whole or not at all; `facts` hold its format and version."""
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    with atomic_write(path) as temporary, open(temporary, "wb") as file:
        file.write(to_bytes(contiguous, metadata={"spptransfer": json.dumps(facts)}))


def read_model(
    path: str | os.PathLike[str], format: str, version: int
) -> tuple[Tensors, dict[str, Any]]:
    """Read the tensors and facts of a model from its file, or from the folder that holds it.

    A `ModelError` tells of a file that is missing, damaged, or of another format.
    """
    path = Path(path)
    path = path / NAME if path.is_dir() else path
    try:
        with safe_open(path, framework="numpy") as file:
            facts = dict(json.loads((file.metadata() or {})["spptransfer"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"there is no model '{path}'") from error
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise ModelError(f"'{path}' is no model of spptransfer, or damaged") from error
    other = _COMMANDS.get(str(facts.get("format")))
    if other and facts["format"] != format:
        raise ModelError(f"'{path}' is for another command: use `spptransfer {other}`")
    if facts.get("format_version") != version or facts.get("format") != format:
        raise ModelError(
            f"'{path}' is '{facts.get('format')}' version {facts.get('format_version')}; "
            f"this release reads {format} {version}"
        )
    return tensors, facts
