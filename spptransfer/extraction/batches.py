"""Parts of a dataset, and batches of images whose views have one size each, never padded."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from spptransfer.extraction.reading import Source

Mask = npt.NDArray[np.bool_]


class Part(NamedTuple):
    """A run of images that is computed and written as one.

    `positions` says where they stand in their dataset, `lacking` which of them each cache lacks.
    """

    positions: npt.NDArray[np.intp]
    ids: Sequence[str]
    sources: Sequence[Source]
    lacking: tuple[Mask, ...]


def group(
    keys: Sequence[Hashable | None], costs: Sequence[int], budget: int
) -> Iterator[list[int]]:
    """Cut positions into batches of equal keys, each within a budget.

    Examples
    --------
    >>> list(group(["a", "b", "a", None, "a"], [4, 9, 4, 0, 4], budget=8))
    [[0, 2], [4], [1]]
    """
    members: dict[Hashable, list[int]] = {}
    for position, key in enumerate(keys):
        if key is not None:
            members.setdefault(key, []).append(position)
    for positions in members.values():
        size = batch_size(costs[positions[0]], budget)
        for start in range(0, len(positions), size):
            yield positions[start : start + size]


def batch_size(cost: int, budget: int) -> int:
    """Return how many images of a cost make a full batch.

    Examples
    --------
    >>> batch_size(4, 9), batch_size(10, 9)
    (2, 1)
    """
    return max(1, budget // max(1, cost))
