"""One family of exceptions for everything a user can get wrong.

Each message is one line that names the thing and the allowed values. The command line
prints it without a traceback; in Python every member is caught as `SPPTransferError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

T = TypeVar("T")


class SPPTransferError(Exception):
    """Base of every error that a user's input can cause.

    Attributes
    ----------
    facts : mapping
        What the command line's JSON says besides the message.
    """

    facts: Mapping[str, Any] = MappingProxyType({})


class ConfigError(SPPTransferError, ValueError):
    """A pipeline file, an option or a parameter is wrong."""


class DatasetError(SPPTransferError):
    """A dataset is missing, empty or not laid out as expected."""


class ImageError(SPPTransferError):
    """An image cannot be decoded within the limits."""


class WeightsError(SPPTransferError):
    """Weights are missing, damaged or belong to another network."""


class CacheError(SPPTransferError):
    """A feature cache is missing, damaged, foreign or held by somebody else."""


class SpecMismatchError(CacheError):
    """A cache was made with another feature spec than the one asked for."""


class ModelError(SPPTransferError):
    """A saved model cannot be read or does not fit what it is asked to score."""


class OutputError(SPPTransferError, OSError):
    """What a command says cannot be written where it should go."""


def suggestion(name: str, allowed: Iterable[Any]) -> str:
    """Say which name a misspelt one probably meant: "did you mean 'x'? allowed: x, y"."""
    names = [str(item) for item in allowed]
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"{hint}allowed: {', '.join(names)}"


def one_of(name: str, value: Any, allowed: Sequence[T]) -> T:
    """Validate a value that is one of a few words."""
    for known in allowed:
        if value == known:
            return known
    raise ConfigError(f"{name}: {value!r} is unknown; {suggestion(str(value), allowed)}")
