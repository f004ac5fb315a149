"""The methods that propose the windows of an image which may hold an object, by their names."""

from __future__ import annotations

import dataclasses
from typing import Any

from spptransfer.detection.objectness import Objectness
from spptransfer.detection.opencv import EdgeBoxes, SelectiveSearch
from spptransfer.detection.proposals import File, Grid
from spptransfer.detection.proposer import Proposer
from spptransfer.errors import ConfigError, suggestion

_METHODS: dict[str, Any] = {
    method.name: method for method in (SelectiveSearch, EdgeBoxes, Grid, Objectness, File)
}


def open_proposer(name: str, **options: Any) -> Proposer:
    """Return a method that proposes windows.

    Parameters
    ----------
    name : {"selective_search", "edge_boxes", "grid", "objectness", "file"}
        The method; the first two need the extra ``proposals``, and ``objectness`` is to be fitted.
    **options
        Its parameters, by default its own.

    Raises
    ------
    ConfigError
        If there is no such method or parameter, or OpenCV is missing.

    Examples
    --------
    >>> import numpy as np
    >>> proposer = open_proposer("grid", max_windows=3)
    >>> proposer.propose(np.zeros((60, 80, 3), np.uint8))[0]
    array([ 0.,  0., 80., 60.], dtype=float32)
    >>> proposer.key
    'grid scales=6 smallest=0.15 step=0.5 max_windows=3 version=1'
    """
    if name not in _METHODS:
        raise ConfigError(f"proposals: {name!r} is unknown; {suggestion(name, _METHODS)}")
    known = [field.name for field in dataclasses.fields(_METHODS[name]) if field.repr]
    for option in options:
        if option not in known:
            raise ConfigError(f"proposals: {name} has no {option!r}; {suggestion(option, known)}")
    if name == File.name and "path" not in options:
        raise ConfigError("proposals: file needs a path")
    proposer: Proposer = _METHODS[name](**options)
    return proposer
