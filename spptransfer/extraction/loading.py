"""Processes that read and decode images for a device that computes faster than threads read."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from spptransfer.extraction.batches import Part
from spptransfer.extraction.reading import ImageInfo, Rendering, Source, read_image

# Images that each process has ready.
_AHEAD = 16


def load_in_processes(
    parts: Iterable[Part], renderings: Sequence[Rendering], processes: int
) -> Iterator[tuple[Part, list[ImageInfo]]]:
    """Read parts with torch's `DataLoader`, and yield each with its decoded images."""
    begun: deque[Part] = deque()
    loader = DataLoader(
        _Images(renderings),
        batch_size=None,
        sampler=_Sources(parts, begun),
        num_workers=processes,
        prefetch_factor=_AHEAD,
    )
    infos: list[ImageInfo] = []
    for info, tensors in loader:
        views = {key: tensor.numpy() for key, tensor in zip(renderings, tensors, strict=False)}
        infos.append(replace(info, views=views))
        if len(infos) == len(begun[0].sources):
            yield begun.popleft(), infos
            infos = []


class _Images(Dataset[Any]):
    """Decode an image by its source, which is its index; tensors travel in shared memory."""

    def __init__(self, renderings: Sequence[Rendering]) -> None:
        self._renderings = renderings

    def __getitem__(self, source: Source) -> tuple[ImageInfo, list[torch.Tensor]]:
        info = read_image(source, self._renderings)
        tensors = [torch.from_numpy(info.views[key]) for key in self._renderings if info.views]
        return replace(info, views={}), tensors


class _Sources(Sampler[Source]):
    """Give the sources of parts in order, and put down which parts were begun."""

    def __init__(self, parts: Iterable[Part], begun: deque[Part]) -> None:
        self._parts = parts
        self._begun = begun

    def __iter__(self) -> Iterator[Source]:
        for part in self._parts:
            self._begun.append(part)
            yield from part.sources
