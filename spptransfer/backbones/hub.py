"""Files of the Hugging Face hub, in the cache that all its users on this machine share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from spptransfer.errors import ConfigError, WeightsError

_SHA256 = re.compile("[0-9a-f]{64}")


def _library() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ConfigError(
            "weights: files of the hub need huggingface_hub: pip install 'spptransfer[timm]'"
        ) from error
    return huggingface_hub


def cached_file(repository: str, filename: str) -> Path:
    """Return where a file lies in the hub's cache, or the folder in which it will."""
    hub = _library()
    found = hub.try_to_load_from_cache(repository, filename)
    if isinstance(found, str):
        return Path(found)
    folder = f"models--{repository.replace('/', '--')}"
    return Path(hub.constants.HF_HUB_CACHE) / folder / filename


def fetch(repository: str, filename: str) -> Path:
    """Fetch a file into the hub's cache."""
    try:
        return Path(_library().hf_hub_download(repository, filename))
    except ConfigError:
        raise
    except Exception as error:  # of the hub, of the network, of the disk
        raise WeightsError(
            f"cannot fetch {filename} of '{repository}' from the hub "
            f"({type(error).__name__}): with a network it goes to "
            f"'{cached_file(repository, filename).parent}'; "
            "a file that you have goes with features.weights=PATH"
        ) from error


def expected_sha256(path: Path) -> str:
    """Return the SHA-256 that the hub gave a file, which names it in the cache; else nothing."""
    blob = path.resolve().name
    return blob if _SHA256.fullmatch(blob) else ""
